"""What a build has told so far: its steps, what they transfer and what they print. Drawn by `build_plain`, `build_tty`.

Fed with the engine's event documents: `{"vertex": …}`, `{"status": …}`, `{"log": …}`, `{"warning": …}`.
"""

from __future__ import annotations

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SECOND = 1_000_000_000  # ns
MAX_LINE = 1 << 16  # characters of a line that has not ended


class Status:
    """One transfer or task below a step: `transferring context: 2.3MB`."""

    __slots__ = ("completed", "current", "id", "started", "total")

    def __init__(self, identifier: str) -> None:
        self.id = identifier
        self.current = self.total = self.started = self.completed = 0

    @property
    def text(self) -> str:
        from wherry.cli.units import human_size

        amount = ""
        if self.total:
            amount = f" {human_size(self.current)} / {human_size(self.total)}"
        elif self.current:
            amount = f" {human_size(self.current)}"
        return self.id + amount


class Line:
    """One line of output, and when it came, in seconds since its step began."""

    __slots__ = ("after", "text")

    def __init__(self, after: float, text: str) -> None:
        self.after = after
        self.text = text


class Step:
    """A vertex of the build."""

    def __init__(self, number: int, key: str) -> None:
        self.number = number
        self.key = key
        self.name = ""
        self.started = self.completed = 0  # ns
        self.cached = False
        self.error = ""
        self.why = ""
        self.statuses: dict[str, Status] = {}
        self.lines: list[Line] = []
        self._rest: dict[int, str] = {}  # of each stream, what is no whole line yet

    @property
    def is_running(self) -> bool:
        return bool(self.started) and not self.completed

    @property
    def internal(self) -> bool:
        return self.name.startswith("[internal]")

    def seconds(self, now: int) -> float:
        return max(0, (self.completed or now) - self.started) / SECOND if self.started else 0.0

    def update(self, event: Mapping[str, Any]) -> None:
        self.name = str(event.get("name") or self.name)
        self.started = int(event.get("started") or 0)
        self.completed = int(event.get("completed") or 0)
        self.cached = bool(event.get("cached"))
        self.error = str(event.get("error") or "")
        self.why = str(event.get("why") or self.why)
        if self.completed:
            self._end_lines()

    def hear(self, stream: int, text: str, at: int) -> None:
        *lines, rest = (self._rest.get(stream, "") + text).split("\n")
        after = max(0, at - self.started) / SECOND if self.started else 0.0
        self.lines += [Line(after, line) for line in lines]
        if len(rest) > MAX_LINE:
            self.lines.append(Line(after, rest))
            rest = ""
        self._rest[stream] = rest

    def _end_lines(self) -> None:
        for stream, rest in self._rest.items():
            if rest:
                self.lines.append(Line(self.seconds(self.completed), rest))
                self._rest[stream] = ""


class Warning:
    """What the linter found."""

    __slots__ = ("detail", "filename", "lines", "rule", "short", "url")

    def __init__(self, event: Mapping[str, Any]) -> None:
        self.rule = str(event.get("rule") or "")
        self.short = str(event.get("short") or "")
        self.detail = [str(line) for line in event.get("detail") or []]
        self.url = str(event.get("url") or "")
        self.filename = str(event.get("filename") or "")
        self.lines = event.get("lines") or []

    @property
    def text(self) -> str:
        """Its rule and its line are in the words of the linter; where they are not, they are added."""
        rule = f"{self.rule}: " if self.rule and not self.short.startswith(f"{self.rule}:") else ""
        line = f" (line {self.lines[0][0]})" if self.lines and "(line " not in self.short else ""
        return f"{rule}{self.short.removeprefix('[Warning] ')}{line}"


class Board:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.warnings: list[Warning] = []
        self._by_key: dict[str, Step] = {}

    def hear(self, event: Mapping[str, Any]) -> Step | None:
        """The step that this is about."""
        kind, fields = next(iter(event.items()))
        if kind == "warning":
            warning = Warning(fields)
            if warning.text not in [each.text for each in self.warnings]:  # of several platforms, or builds
                self.warnings.append(warning)
            return None
        if kind not in ("vertex", "status", "log"):
            return None  # of a newer engine
        step = self.step(str(fields.get("key") if kind == "vertex" else fields.get("vertex")))
        if kind == "vertex":
            step.update(fields)
        elif kind == "status":
            identifier = str(fields.get("id"))
            status = step.statuses.setdefault(identifier, Status(identifier))
            for name in ("current", "total", "started", "completed"):
                setattr(status, name, int(fields.get(name) or 0))
        else:
            step.hear(int(fields.get("stream") or 1), log_text(fields), int(fields.get("at") or 0))
        return step

    def step(self, key: str) -> Step:
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = Step(len(self.steps) + 1, key)
            self.steps.append(found)
        return found

    @property
    def failed(self) -> Step | None:
        return next((step for step in self.steps if step.error and "canceled" not in step.error), None)


def log_text(event: Mapping[str, Any]) -> str:
    """What a log event holds; bytes that are no text are replaced."""
    if "text" in event:
        return str(event["text"])
    return binascii.a2b_base64(str(event.get("data") or "")).decode("utf-8", "replace")
