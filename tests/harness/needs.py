"""What a test needs from the machine. Where everything must be there (CI, `make test`) a missing thing is a failure;
elsewhere the test is skipped, naming what is missing.
"""

import os
import shutil
from typing import NoReturn

import pytest

from . import engine as _engine  # completes PATH  # noqa: F401

MUST = bool(os.environ.get("CI") or os.environ.get("WHERRY_TEST_REQUIRE"))
ENGINE = os.environ.get("WHERRY_TEST_ENGINE", "wherry")


def missing(what: str, remedy: str) -> NoReturn:
    """Skip the running test, or fail it where nothing may be missing."""
    message = f"missing: {what} ({remedy})"
    if MUST:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def require_programs(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            missing(name, "`make install-test` brings it")


def require_root() -> None:
    if os.geteuid() != 0:
        missing("root", "namespaces and mounts need it")
