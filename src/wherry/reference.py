"""References: how images are named, in Docker's grammar (the `distribution/reference` rules).

    reference  = name [":" tag] ["@" digest]
    name       = [domain "/"] path           docker.io and library/ are understood when left out
    familiar   = the short form people type: docker.io/library/alpine:latest is shown as alpine:latest

Pure; the words of errors are Docker's.
"""

import re
from dataclasses import dataclass, replace

from wherry.digest import Digest, is_digest
from wherry.errors import InvalidParameter

DEFAULT_DOMAIN = "docker.io"
LEGACY_DOMAIN = "index.docker.io"
OFFICIAL = "library/"  # repositories of docker.io without a user
DEFAULT_TAG = "latest"
MAX_NAME = 255  # characters of a repository name

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?\Z"
)
_TAG_ONLY = re.compile(rf"{_TAG}\Z")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}\Z")

MAX_TEXT = 4096  # characters looked at: far above the longest legal reference, so that no regex sees a megabyte


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A checked, complete reference: the domain is never left out."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """`docker.io/library/alpine`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """`alpine`; `user/x`; `localhost:5000/x`. Longer where the short form would mean something else."""
        first, slash, _ = self.path.partition("/")
        if self.domain != DEFAULT_DOMAIN or (slash and _is_domain(first)):
            return self.name
        short = self.path.removeprefix(OFFICIAL)
        return self.path if "/" in short or _IDENTIFIER.match(short) else short

    @property
    def familiar(self) -> str:
        """The familiar name with tag and digest, as far as there are any."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag

    def tagged(self) -> "Reference":
        """Itself, with `latest` when there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> "Reference":
        """The same repository with `tag` and no digest; raises InvalidParameter for a malformed tag."""
        if _TAG_ONLY.match(tag) is None:
            raise InvalidParameter("invalid tag format")
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> "Reference":
        """The same repository with `digest` and no tag."""
        return replace(self, tag=None, digest=digest)


def parse(text: str) -> Reference:
    """Read a reference as people type it. Raises InvalidParameter in Docker's words."""
    if len(text) > MAX_TEXT:
        raise InvalidParameter("invalid reference format")
    if _IDENTIFIER.match(text):
        raise InvalidParameter(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, rest = _split_domain(text)
    path = rest.partition("@")[0].partition(":")[0]
    if path != path.lower():
        raise InvalidParameter(f"invalid reference format: repository name ({path}) must be lowercase")
    match = _REFERENCE.match(f"{domain}/{rest}")
    if match is None:
        raise InvalidParameter("invalid reference format")
    if len(match["path"]) > MAX_NAME:
        raise InvalidParameter(f"repository name must not be more than {MAX_NAME} characters")
    return Reference(domain=match["domain"], path=match["path"], tag=match["tag"], digest=_digest(match["digest"]))


def _digest(text: str | None) -> Digest | None:
    if text is None:
        return None
    if not text.startswith("sha256:"):
        raise InvalidParameter("unsupported digest algorithm")
    if not is_digest(text):
        raise InvalidParameter(
            "invalid checksum digest length" if len(text) != 71 else "invalid checksum digest format"
        )
    return Digest(text)


def _split_domain(text: str) -> tuple[str, str]:
    """Docker's rule: the first component is a domain if it has a dot, a colon or capitals, or is `localhost`."""
    first, slash, rest = text.partition("/")
    domain, rest = (first, rest) if slash and _is_domain(first) else (DEFAULT_DOMAIN, text)
    if domain == LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = OFFICIAL + rest
    return domain, rest


def _is_domain(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def parse_repository(text: str, tag: str | None = None) -> Reference:
    """Repository and tag as two parameters (`repo=` and `tag=`): the tag parameter wins, `latest` when none is given.

    Raises InvalidParameter, also for a digest, which nobody can choose.
    """
    reference = parse(text)
    if reference.digest is not None:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    return reference.with_tag(tag) if tag else reference.tagged()


def is_identifier(text: str) -> bool:
    """True for 64 hex digits: an image id without its algorithm."""
    return _IDENTIFIER.match(text) is not None
