"""Image references as typed: `alpine`, `ghcr.io/a/b:1`, `x@sha256:…`; enough to ask for them and to show them."""

from __future__ import annotations

DEFAULT_DOMAIN = "docker.io"
INDEX_SERVER = "https://index.docker.io/v1/"
_HEX = frozenset("0123456789abcdef")
_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_DOMAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-:[]")
_TAG = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


class InvalidReference(ValueError):
    """Not a reference; the message is docker's."""


class Name:
    """`repository` is the full one (`docker.io/library/alpine`), `familiar` what users see (`alpine`)."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def repository(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        if self.domain == DEFAULT_DOMAIN:
            return self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path
        return self.repository

    @property
    def suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Name:
        return self if self.tag or self.digest else Name(self.domain, self.path, "latest", "")

    @property
    def server(self) -> str:
        """The registry's key in config.json."""
        return INDEX_SERVER if self.domain == DEFAULT_DOMAIN else self.domain


def parse_name(text: str) -> Name:
    """InvalidReference when `text` is no reference."""
    if len(text) == 64 and set(text) <= _HEX:
        raise InvalidReference(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, at, digest = text.partition("@")
    if at:
        algorithm, _, encoded = digest.partition(":")
        if not algorithm or len(encoded) < 32 or not set(encoded) <= _HEX:
            raise InvalidReference("invalid reference format")
    head, slash, last = rest.rpartition("/")
    name, colon, tag = last.partition(":")
    if colon and (not tag or len(tag) > 128 or not set(tag) <= _TAG or tag[0] in ".-"):
        raise InvalidReference("invalid reference format")
    domain, path = _split_domain(head + slash + name)
    if path != path.lower():
        raise InvalidReference(f"invalid reference format: repository name ({path}) must be lowercase")
    for part in path.split("/"):
        if not part or part[0] not in _LOWER or part[-1] not in _LOWER or not set(part) <= _LOWER | set("._-"):
            raise InvalidReference("invalid reference format")
    return Name(domain, path, tag, digest)


def is_domain(first: str) -> bool:
    """Does the first component of a name name a registry?"""
    return "." in first or ":" in first or first == "localhost" or first.lower() != first


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and is_domain(first):
        if not set(first) <= _DOMAIN:
            raise InvalidReference("invalid reference format")
        domain, path = first, rest
    else:
        domain, path = DEFAULT_DOMAIN, name
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return domain, path
