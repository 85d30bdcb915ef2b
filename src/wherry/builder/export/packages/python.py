"""Python's packages: METADATA of *.dist-info, PKG-INFO of *.egg-info (PEP 566)."""

import re

from wherry.builder.export.packages.package import Package, clipped, is_plain, stanzas


def parse_metadata(text: str, *, found: str) -> Package | None:
    headers = next(stanzas(text), {})
    name, version = headers.get("name", ""), headers.get("version", "")
    if not is_plain(name) or not is_plain(version):
        return None
    said = headers.get("license-expression") or headers.get("license", "")
    return Package(
        kind="pypi",
        name=re.sub(r"[-_.]+", "-", name).lower(),  # PEP 503
        version=version,
        license=clipped(said) if said.upper() != "UNKNOWN" else "",
        supplier=clipped(headers.get("author", "")),
        found=found,
    )
