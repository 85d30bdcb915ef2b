"""Node's packages: package.json of each directory in node_modules."""

import msgspec

from wherry.builder.export.packages.package import Package, clipped, is_plain


def parse_manifest(data: bytes, *, found: str) -> Package | None:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    name, version = document.get("name"), document.get("version")
    if not isinstance(name, str) or not isinstance(version, str) or not is_plain(name) or not is_plain(version):
        return None
    scope, slash, base = name.rpartition("/")
    said = document.get("license")
    if isinstance(said, dict):  # of old: {"type": "MIT", "url": …}
        said = said.get("type")
    return Package(
        kind="npm",
        namespace=scope if slash else "",
        name=base,
        version=version,
        license=clipped(said) if isinstance(said, str) else "",
        found=found,
    )
