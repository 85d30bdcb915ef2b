"""Each Dockerfile in `cases` becomes the graph, the config and the history that stand beside it.

`<name>.attributes` has what BuildKit's client sends with it. WRITE_EXPECTED=1 writes the texts anew, to be read.
"""

import os
from pathlib import Path

import pytest

from harness.conversion import Trial
from wherry.builder.dockerfile.convert.describing import describe

CASES = sorted((Path(__file__).parent / "cases").glob("*.Dockerfile"))
ALLOWED = ("network.host", "security.insecure", "device")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
async def test_a_dockerfile_becomes_the_graph_that_is_written_beside_it(path: Path):
    attributes = {}
    beside = path.with_suffix(".attributes")
    if beside.exists():
        attributes = dict(line.split("=", 1) for line in beside.read_text().splitlines())
    trial = Trial(path.read_text(), attributes, ignore=b"*.md\n!README.md\n", allowed=ALLOWED)
    found = describe(await trial.targets())
    expected = path.with_suffix(".expected")
    if os.environ.get("WRITE_EXPECTED"):
        expected.write_text(found)
    assert found == expected.read_text()


def test_there_are_cases():
    assert len(CASES) > 15
