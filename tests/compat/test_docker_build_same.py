"""The classic `POST /build`, told line by line as Docker's own daemon tells it.

`transcripts/build/*.txt` were recorded on Debian's dockerd; here they are played to the engine under test, and to
dockerd where there is one. A transcript is a list of scenes, one store for all of them:

    == what the scene shows
    | the Dockerfile                    its context has the files `a.txt` and `sub/b.txt`
    $ parameters of the query           `k=v k=v`; values may be JSON without spaces
    what the stream says; refusals as `! status message`

Identifiers are written <id>. Lines of one engine alone begin with "wherry: " or "dockerd: ".
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from harness import images
from harness.box import Box
from harness.buildx import remove_cgroups
from harness.engine import Engine, remove_root, short_root
from harness.needs import ENGINE, require_programs

TRANSCRIPTS = Path(__file__).parent / "transcripts/build"
FILES = [
    images.Entry(name="a.txt", data=b"A"),
    images.directory("sub"),
    images.Entry(name="sub/b.txt", data=b"B"),
]
IDENTIFIER = re.compile(r"(?:sha256:)?\b(?:[0-9a-f]{64}|[0-9a-f]{12})\b")


def context(dockerfile: str) -> bytes:
    return images.tar([images.Entry(name="Dockerfile", data=dockerfile.encode()), *FILES])


def build(engine: Engine, dockerfile: str, query: str) -> list[str]:
    """What the engine answers, a line each."""
    pairs = [tuple(pair.split("=", 1)) for pair in query.split()]
    answer = engine.api.request(
        "POST", f"/build?{urlencode(pairs)}", context(dockerfile), headers={"Content-Type": "application/x-tar"}
    )
    if answer.status != 200:
        return [f"! {answer.status} {answer.message}"]
    told, end = "", []
    for line in answer.body.splitlines():
        document = json.loads(line)
        told += document.get("stream", "")
        if aux := document.get("aux"):
            told += f"aux {aux['ID']}\n"
        if error := document.get("errorDetail"):
            assert document["error"] == error["message"]
            end = [f"! {error.get('code', '')} {error['message']}"]
    lines = told.replace("\x1b[91m", "<red>").replace("\x1b[0m", "<plain>").splitlines()
    return [IDENTIFIER.sub("<id>", line).rstrip() for line in [*lines, *end]]


def play(engine: Engine, text: str) -> list[str]:
    """The transcript with what really came in place of what was recorded."""
    told: list[str] = []
    dockerfile = ""
    for line in text.splitlines():
        if line.startswith("=="):
            told += ["", line]
            dockerfile = ""
        elif line.startswith("|"):
            told.append(line)
            dockerfile += line[2:] + "\n"
        elif line.startswith("$"):
            told += [line, *build(engine, dockerfile, line[1:])]
    return told[1:]


def expected(text: str, kind: str) -> list[str]:
    kept = []
    for line in text.splitlines():
        only = re.match(r"(wherry|dockerd): ?", line)
        if only is None or only[1] == kind:
            kept.append(line[only.end() :] if only else line)
    return kept


@contextlib.contextmanager
def engine_of(kind: str) -> Iterator[Engine]:
    root = short_root()
    try:
        with Box() as box:
            parent = f"/wherry-same-{box.holder}"
            engine = Engine(box, root, kind=kind, args=["--cgroup-parent", parent] if kind == "wherry" else [])
            engine.start()
            try:
                engine.load(images.docker_archive([images.busybox()]))
                yield engine
            finally:
                engine.remove_all_containers()
                engine.stop()
                remove_cgroups(parent)
    finally:
        remove_root(root)


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    """The engine under test, and dockerd besides where it is installed."""
    require_programs("nft", "nsenter", "unshare")
    kinds = dict.fromkeys([ENGINE, *(["dockerd"] if shutil.which("dockerd") else [])])
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(engine_of(kind)) for kind in kinds]


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_line_is_dockers(engines: list[Engine], path: Path) -> None:
    text = path.read_text()
    for engine in engines:
        kind = "dockerd" if engine.is_dockerd else "wherry"
        assert play(engine, text) == expected(text, kind), kind
