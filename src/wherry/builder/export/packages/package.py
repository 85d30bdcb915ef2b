"""A package, as an SBOM tells of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

MAX_FIELD = 1000  # characters of a name, a version, a licence


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Package:
    kind: str  # of its package URL: deb, apk, rpm, pypi, npm, golang
    namespace: str = ""  # "debian"; "@scope"
    name: str
    version: str
    architecture: str = ""
    license: str = field(default="", compare=False)  # as the package says, in whatever form
    source: str = field(default="", compare=False)  # what it was built from, where that has another name
    supplier: str = field(default="", compare=False)
    checksum: str = field(default="", compare=False)  # as its ecosystem writes it: h1:…
    found: str = ""  # path of what told of it

    def purl(self, distribution: str = "") -> str:
        """https://github.com/package-url/purl-spec."""
        parts = [self.namespace, self.name]
        if self.kind == "golang":
            parts = [*self.namespace.split("/"), *self.name.split("/")]
        path = "/".join(quote(part, safe="") for part in parts if part)
        version, qualifiers = self.version, {"arch": self.architecture}
        if self.kind == "rpm" and ":" in version:
            qualifiers["epoch"], _, version = version.partition(":")
        if self.kind in ("deb", "apk", "rpm"):
            qualifiers["distro"] = distribution
        query = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(qualifiers.items()) if value)
        return f"pkg:{self.kind}/{path}@{quote(version, safe='')}" + (f"?{query}" if query else "")


def is_plain(text: str) -> bool:
    """A field that can be what it says it is."""
    return 0 < len(text) <= MAX_FIELD and text.isprintable()


def clipped(text: str) -> str:
    """A field that is shown and means nothing else: one line, not too long."""
    return "".join(character for character in text if character.isprintable())[:MAX_FIELD]


def stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """Paragraphs of `Name: value`, names in lower case (deb822, and mail headers): only what is on the first line."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if not line:
            if found:
                yield found
            found = {}
        elif line[0] not in " \t":
            name, colon, value = line.partition(":")
            if colon:
                found.setdefault(name.strip().lower(), value.strip())
    if found:
        yield found


def os_release(text: str) -> dict[str, str]:
    """os-release(5)."""
    found = {}
    for line in text.split("\n"):
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            found[name] = value.strip("\"'")
    return found
