"""What is in real trees."""

import json
import shutil
from pathlib import Path

from wherry.builder.export.outputs import export
from wherry.builder.export.sbom import with_sbom
from wherry.builder.options import Export
from wherry.builder.trees import SCRATCH


async def test_the_packages_of_a_tree_are_stated_in_its_index(bench, require):
    """Debian's own status file, and a Go program of its."""
    require("skopeo")

    def fill(root: Path) -> None:
        for path in ("/var/lib/dpkg/status", "/usr/lib/os-release", shutil.which("skopeo")):
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path.lstrip("/"))
        (root / "etc").mkdir()
        (root / "etc/os-release").symlink_to("../usr/lib/os-release")

    tree = await bench.layer(SCRATCH, fill)
    work = await with_sbom(bench.work(bench.variant(tree)), {"referrers": "true"})
    outcome = await export(work, Export(type="image", attributes={"name": "x"}), 0)
    (digest,) = outcome.results[0].attestations
    statement = json.loads(bench.deps.content.read(digest, limit=64 << 20))
    assert statement["predicateType"] == "https://spdx.dev/Document"
    purls = [
        reference["referenceLocator"]
        for package in statement["predicate"]["packages"]
        for reference in package.get("externalRefs", [])
    ]
    assert any(purl.startswith("pkg:deb/debian/dpkg@1.") and purl.endswith("distro=debian-12") for purl in purls)
    assert any(purl.startswith("pkg:golang/stdlib@1.") for purl in purls)
    assert "[internal] generating sbom" in [vertex.name for vertex in bench.vertices]


async def test_an_empty_tree_has_a_document_too(bench):
    work = await with_sbom(bench.work(bench.variant(SCRATCH)), {})
    (statement,) = work.variants[0].statements
    assert [package["name"] for package in statement.predicate["packages"]] == ["image"]
