"""Rings, required tools, and what all kernel and compat tests may ask for.

unit, api       no privilege
kernel, compat  root and a real kernel; marked by their folder
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # `harness`, whichever way pytest imports


@pytest.fixture(scope="session")
def require() -> Callable[..., None]:
    """`require("skopeo", "nft")`: these programs, or the test is skipped (fails in CI)."""
    from harness.needs import require_programs

    return require_programs


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "not_dockerd(reason): Debian's dockerd 20.10 cannot pass this")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = Path(item.path)
        ring = path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""
        if ring in ("kernel", "compat"):
            item.add_marker(ring)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") or item.get_closest_marker("compat"):
        from harness.needs import ENGINE, require_root

        require_root()
        reason = item.get_closest_marker("not_dockerd")
        if reason and ENGINE == "dockerd":
            pytest.skip(f"dockerd 20.10: {reason.args[0]}")
