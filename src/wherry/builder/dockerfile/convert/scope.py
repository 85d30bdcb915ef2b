"""Variables: what a word of an instruction becomes, and which of them it took.

A stage has one set of values, in which the later of ENV and ARG of one name wins, as in BuildKit: it is what words are
expanded with and what programs get. Which of the names were declared by ARG is remembered: history lists them, and
explanations of cache misses name them. A stage built on another one inherits both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from wherry.builder.dockerfile.words import expand

# Known without an ARG: in the environment of steps, but no part of what they are known by in the cache.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
SCANS = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})  # say something to the builder only


@dataclass(slots=True, kw_only=True)
class Scope:
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str | None] = field(default_factory=dict)  # declared by ARG, in order; None = without a value
    own: set[str] = field(default_factory=set)  # of those: declared in this stage

    def child(self) -> "Scope":
        """Of a stage built on this one."""
        return Scope(env=dict(self.env), args=dict(self.args))

    def declare(self, name: str, value: str | None) -> None:
        self.args[name] = value
        self.own.add(name)
        if value is not None and name not in SCANS:
            self.env[name] = value

    @property
    def build_args(self) -> dict[str, str]:
        """Everything ARG declared, with the value it has by now."""
        return {name: self.env.get(name, value or "") for name, value in self.args.items()}

    @property
    def own_args(self) -> dict[str, str]:
        """Only what was declared in this stage."""
        return {name: value for name, value in self.build_args.items() if name in self.own}


@dataclass(slots=True, kw_only=True)
class Reader:
    """Reads the words of one instruction."""

    env: Mapping[str, str]
    escape: str
    used: set[str] = field(default_factory=set)
    unset: set[str] = field(default_factory=set)

    def text(self, word: str) -> str:
        """Variables replaced, quotes taken off. Raises DockerfileError."""
        found = expand(word, self.env, escape=self.escape)
        self.used |= found.used
        self.unset |= found.unset
        return found.text

    def words(self, word: str) -> tuple[str, ...]:
        """The same, split at white space."""
        found = expand(word, self.env, escape=self.escape)
        self.used |= found.used
        self.unset |= found.unset
        return found.words

    def document(self, content: str) -> str:
        """A here-document: quotes mean nothing in it, and its escape character is always the backslash."""
        found = expand(content, self.env, quotes=False)
        self.used |= found.used
        self.unset |= found.unset
        return found.text


def proxies(build_args: Mapping[str, str], env: Mapping[str, str]) -> tuple[str, ...]:
    """Environment entries for proxies given as build arguments, in both cases; what the stage sets itself stays."""
    lower = {name.lower(): value for name, value in build_args.items()}
    found = []
    for name in PROXIES:
        if value := lower.get(name.lower(), ""):
            found += [f"{form}={value}" for form in (name, name.lower()) if form not in env]
    return tuple(found)


def predefined(name: str) -> bool:
    """A build argument that means something without being declared."""
    return name.upper() in PROXIES or name.startswith("BUILDKIT_") or name in SCANS or name == "SOURCE_DATE_EPOCH"
