"""The same for several objects: every one is tried, every failure reported, and the exit code is 1 if any failed."""

from __future__ import annotations

from wherry.cli.console import flush, line, warn
from wherry.client.engine import EngineError, ProtocolError, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wherry.cli.command import CLI
    from wherry.client.engine import Engine

AT_ONCE = 20  # calls that run side by side


def describe(exc: EngineError | Unreachable | ProtocolError) -> str:
    from wherry.cli.main import cannot_connect, daemon_said

    if isinstance(exc, EngineError):
        return daemon_said(exc.message)
    return cannot_connect(exc) if isinstance(exc, Unreachable) else str(exc)


def for_each_at_once(cli: CLI, names: Sequence[str], act: Callable[[Engine, str], None]) -> int:
    """Like `for_each`, with the calls running side by side; names are printed in their order as they succeed."""
    if len(names) == 1:
        engine = cli.engine

        def single(name: str) -> None:
            act(engine, name)
            line(name)

        return for_each(names, single)
    from concurrent.futures import ThreadPoolExecutor

    def one(name: str) -> str:
        """What went wrong; empty when nothing did."""
        engine = cli.another_engine()
        try:
            act(engine, name)
        except (EngineError, ProtocolError, Unreachable) as exc:
            return describe(exc)
        finally:
            engine.close()
        return ""

    failures: list[str] = []
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        for name, failure in zip(names, pool.map(one, names), strict=True):
            if failure:
                failures.append(failure)
            else:
                line(name)
                flush()
    for failure in failures:
        warn(failure)
    return 1 if failures else 0


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
