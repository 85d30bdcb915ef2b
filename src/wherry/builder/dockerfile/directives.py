"""Parser directives: `# syntax=`, `# escape=` and `# check=` at the very top of a Dockerfile."""

import re
from dataclasses import dataclass

from wherry.builder.dockerfile.errors import DockerfileError, shortened

NAMES = ("syntax", "escape", "check")
FRONTENDS = frozenset({"docker/dockerfile", "docker/dockerfile-upstream"})
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*?)\s*\Z")
_LONGEST = 4096  # characters of a line that may be one


@dataclass(frozen=True, slots=True)
class Directive:
    name: str
    value: str
    line: int


class DirectiveReader:
    """Fed the lines from the first one on, until one is no directive."""

    def __init__(self) -> None:
        self.found: dict[str, Directive] = {}
        self._open = True
        self._names: tuple[str, ...] = NAMES

    def take(self, line: str, number: int) -> bool:
        """Whether `line` is a directive. Raises DockerfileError for a second one of its name."""
        if self._open and number == 1 and line.startswith("#!"):
            self._names = ("syntax", "check")  # BuildKit does not read the others behind it
            return False
        if not self._open:
            return False
        match = _DIRECTIVE.match(line) if len(line) <= _LONGEST else None
        name = match[1].lower() if match is not None else ""
        if match is None or name not in self._names:
            self._open = False
            return False
        if name in self.found:
            raise DockerfileError(f"only one {name} parser directive can be used")
        if name == "escape" and match[2] not in ("\\", "`"):
            raise DockerfileError(f"invalid escape token '{shortened(match[2])}' does not match ` or \\")
        if name == "syntax":
            check_frontend(match[2])
        self.found[name] = Directive(name, match[2], number)
        return True

    def close(self) -> None:
        """What follows is none, whatever it looks like."""
        self._open = False

    def value(self, name: str, default: str = "") -> str:
        found = self.found.get(name)
        return found.value if found is not None else default


def check_frontend(value: str) -> None:
    """What `# syntax=` or BUILDKIT_SYNTAX may say. Raises DockerfileError for a language that is not built in."""
    reference = value.split()[0] if value.split() else ""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = head + slash + last.partition(":")[0]
    for domain in ("docker.io/", "index.docker.io/"):
        name = name.removeprefix(domain)
    if name not in FRONTENDS:
        raise DockerfileError(
            f"frontend {shortened(reference)} is not supported: only Docker's own language, docker/dockerfile, is "
            'built in, and frontends are not run from images; remove the line, or write "# syntax=docker/dockerfile:1"',
            near=reference,
        )
