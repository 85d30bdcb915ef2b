"""The same for several objects: every one is tried, every failure reported, and the exit code is 1 if any failed."""

from __future__ import annotations

from wherry.cli.console import warn
from wherry.client.engine import EngineError, ProtocolError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def describe(exc: EngineError | Unreachable | ProtocolError) -> str:
    from wherry.cli.main import cannot_connect, daemon_said

    if isinstance(exc, EngineError):
        return daemon_said(exc.message)
    return cannot_connect(exc) if isinstance(exc, Unreachable) else str(exc)


def for_each(names: Sequence[str], act: Callable[[str], None], *, missing_is_fine: bool = False) -> int:
    """Failures are printed when all are through, after the successes. `missing_is_fine` still reports, with code 0."""
    failures: list[str] = []
    code = 0
    for name in names:
        try:
            act(name)
        except (EngineError, ProtocolError) as exc:
            failures.append(describe(exc))
            if not (missing_is_fine and isinstance(exc, EngineError) and exc.status == 404):
                code = 1
        except Unreachable as exc:
            failures.append(describe(exc))
            code = 1
            break  # nor would the others be heard
    for failure in failures:
        warn(failure)
    return code
