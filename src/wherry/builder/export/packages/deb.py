"""Debian's packages: /var/lib/dpkg/status, and one file each in /var/lib/dpkg/status.d (distroless images)."""

from collections.abc import Iterator

from wherry.builder.export.packages.package import Package, clipped, is_plain, stanzas


def parse_status(text: str, *, namespace: str, found: str) -> Iterator[Package]:
    """Those that are installed."""
    for stanza in stanzas(text):
        name, version = stanza.get("package", ""), stanza.get("version", "")
        state = stanza.get("status", "install ok installed").split()
        if is_plain(name) and is_plain(version) and state[-1:] == ["installed"]:
            yield Package(
                kind="deb",
                namespace=namespace,
                name=name,
                version=version,
                architecture=clipped(stanza.get("architecture", "")),
                source=clipped(stanza.get("source", "")),
                supplier=clipped(stanza.get("maintainer", "")),
                found=found,
            )
