"""Alpine's packages: /lib/apk/db/installed, paragraphs of one-letter fields."""

from collections.abc import Iterator

from wherry.builder.export.packages.package import Package, clipped, is_plain


def parse_installed(text: str, *, namespace: str, found: str) -> Iterator[Package]:
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in paragraph.split("\n"):
            if line[1:2] == ":":
                fields.setdefault(line[0], line[2:].strip())
        name, version = fields.get("P", ""), fields.get("V", "")
        if is_plain(name) and is_plain(version):
            origin = clipped(fields.get("o", ""))
            yield Package(
                kind="apk",
                namespace=namespace,
                name=name,
                version=version,
                architecture=clipped(fields.get("A", "")),
                license=clipped(fields.get("L", "")),
                source=origin if origin != name else "",
                supplier=clipped(fields.get("m", "")),
                checksum=clipped(fields.get("C", "")),
                found=found,
            )
