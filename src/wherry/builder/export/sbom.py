"""The bill of materials of a result: an SPDX 2.3 document of the packages that are known of in its tree.

The same tree gives the same document. What is not looked into is said in it.
Source: https://spdx.github.io/spdx-spec/v2.3/.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wherry import __version__
from wherry.aio import settle
from wherry.builder.export.documents import moment
from wherry.builder.export.packages.package import Package
from wherry.builder.export.packages.scan import Scan, scan
from wherry.builder.export.settings import flag
from wherry.builder.export.work import Statement, Variant, Work, telling
from wherry.digest import ChainID
from wherry.errors import InvalidParameter, NotSupported
from wherry.kernel.files import closing
from wherry.kernel.mount import open_detached
from wherry.storage.snapshot import Snapshotter

PREDICATE = "https://spdx.dev/Document"
_NAMESPACE = uuid.UUID("7d0a9a86-5d8e-4f4c-9d3b-0c8f5d3f6a52")  # of our documents' names
_UNKNOWN = "NOASSERTION"


def check_wish(attributes: Mapping[str, str]) -> None:
    """The attributes of `attest:sbom`. Raises InvalidParameter, and NotSupported for a scanner that is an image."""
    if generator := attributes.get("generator", ""):
        raise NotSupported(
            f"the SBOM scanner {generator[:200]} cannot be run: leave generator out to use the built-in one"
        )
    filename = attributes.get("filename", "")
    if "/" in filename or not filename.isprintable():
        raise InvalidParameter(f"invalid filename {filename[:50]!r} of sbom")
    for name in ("referrers", "inline-only"):
        flag(attributes, name)


async def with_sbom(work: Work, attributes: Mapping[str, str]) -> Work:
    """Each variant with the statement of what is in it. Raises as `check_wish`."""
    check_wish(attributes)
    variants = []
    for variant in work.variants:
        platform = f" {variant.platform}" if len(work.variants) > 1 else ""
        with telling(work.log, f"[internal] generating sbom{platform}"):
            variants.append(await _scanned(work, variant, attributes))
    return work.with_variants(variants)


async def _scanned(work: Work, variant: Variant, attributes: Mapping[str, str]) -> Variant:
    tree = await work.bring(variant.tree)
    found = await settle(_scan, work.deps.snapshots, tree.chain)
    statement = Statement(
        predicate_type=PREDICATE,
        predicate=document(found, identity=tree.identity, created=moment(work.epoch)),
        name=attributes.get("filename") or "sbom.spdx.json",
        referrer=flag(attributes, "referrers"),
        inline_only=flag(attributes, "inline-only"),
    )
    return replace(variant, statements=[*variant.statements, statement])


def _scan(snapshots: Snapshotter, chain: ChainID | None) -> Scan:
    with closing(open_detached(snapshots.view(chain))) as root:
        return scan(root)


def document(found: Scan, *, identity: str, created: str) -> dict[str, Any]:
    """`identity`: what the tree is known by."""
    packages = [_package(package, number, found.distribution) for number, package in enumerate(found.packages, 1)]
    image: dict[str, Any] = {
        "SPDXID": "SPDXRef-image",
        "name": "image",
        "versionInfo": identity,
        "downloadLocation": _UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": _UNKNOWN,
        "licenseDeclared": _UNKNOWN,
        "copyrightText": _UNKNOWN,
        "primaryPackagePurpose": "CONTAINER",
    }
    if found.system:
        image["summary"] = found.system
    creation: dict[str, Any] = {"created": created, "creators": [f"Tool: wherry-{__version__}"]}
    if found.not_covered:
        creation["comment"] = f"Not covered: {'; '.join(found.not_covered)}."
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "sbom",
        "documentNamespace": f"https://spdx.org/spdxdocs/wherry-{uuid.uuid5(_NAMESPACE, identity)}",
        "creationInfo": creation,
        "packages": [image, *packages],
        "relationships": [
            _related("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image"),
            *(_related("SPDXRef-image", "CONTAINS", package["SPDXID"]) for package in packages),
        ],
    }


def _related(one: str, how: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def _package(package: Package, number: int, distribution: str) -> dict[str, Any]:
    name = (
        f"{package.namespace}/{package.name}"
        if package.kind in ("npm", "golang") and package.namespace
        else package.name
    )
    found: dict[str, Any] = {
        "SPDXID": f"SPDXRef-Package-{package.kind}-{re.sub(r'[^A-Za-z0-9.]+', '-', package.name)}-{number}",
        "name": name,
        "versionInfo": package.version,
        "supplier": f"Organization: {package.supplier}" if package.supplier else _UNKNOWN,
        "downloadLocation": _UNKNOWN,
        "filesAnalyzed": False,
        "sourceInfo": f"found in {package.found}" + (f", built from {package.source}" if package.source else ""),
        "licenseConcluded": _UNKNOWN,
        "licenseDeclared": _UNKNOWN,
        "copyrightText": _UNKNOWN,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package.purl(distribution),
            }
        ],
    }
    if package.license:  # as people write it, which is no SPDX expression for sure
        found["licenseComments"] = f"the package says: {package.license}"
    if package.checksum:
        found["comment"] = f"checksum in its ecosystem's form: {package.checksum}"
    return found
