"""Tagging, removing and pruning, told line by line as Docker's own daemon tells it.

`transcripts/*.txt` were recorded on Debian's dockerd; here they are played to the engine under test, and to dockerd
where there is one. A transcript is a list of scenes, each from a fresh store:

    == what the scene shows
    $ docker's arguments               or: $ api METHOD /path
    what it prints, errors with "! "; then the image events, with "~ "

Identifiers are written <name>: of an image, `<name/n>` of its nth layer, <new1> and so on of what the scene made.
Lines of one engine alone begin with "wherry| " or "dockerd| ".
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import images
from harness.box import Box
from harness.engine import Engine, remove_root, short_root
from harness.needs import ENGINE, require_programs
from harness.registry import Registry

TRANSCRIPTS = Path(__file__).parent / "transcripts"
HEXES = re.compile(r"(?:sha256:)?\b([0-9a-f]{64}|[0-9a-f]{12})\b")
HOLE = re.compile(r"<([a-z0-9/]+)(?::(\d+))?>")
REGISTRY_PORT = 5003


def image(name: str, *files: str, **labels: str) -> images.Image:
    extra = [images.tar([images.Entry(name=each, data=each.encode())]) for each in files]
    return images.Image(tags=[f"{name}:latest"], layers=[images.busybox_layer(), *extra], config={"Labels": labels})


BASE = {
    "one": image("one", "1"),
    "two": image("two", "2", kind="b"),
    "three": image("three", "2", "3", kind="c", keep="yes"),
}


def chain_ids(made: images.Image) -> list[str]:
    found: list[str] = []
    for layer in made.layers:
        name = images.digest(layer)
        found.append(images.digest(f"{found[-1]} {name}".encode()) if found else name)
    return found


class Stage:
    """Where scenes are played: an engine with the base images, and the names of what it shows."""

    def __init__(self, engine: Engine, registry: str) -> None:
        self.engine, self.registry = engine, registry
        self.kind = "dockerd" if engine.is_dockerd else "wherry"
        self.known: dict[str, str] = {}

    def reset(self) -> None:
        """Only the base images, and no name but theirs."""
        self.engine.remove_all_containers()
        while left := self.engine.api.get("/images/json?all=1"):
            for each in left:
                self.engine.api.request("DELETE", f"/images/{each['Id']}?force=1")
        self.engine.load(images.docker_archive(list(BASE.values())))
        self.known = {each.id[7:]: name for name, each in BASE.items()}
        for name, each in BASE.items():
            for number, chain in enumerate(chain_ids(each)):
                self.known.setdefault(chain[7:], f"{name}/{number}" if number else "base")

    def run(self, line: str) -> list[str]:
        """What one command prints, and the image events of it."""
        line = HOLE.sub(self._fill, line).replace("REGISTRY", self.registry)
        since = time.time()
        words = line.split()
        if words[0] == "api":
            answer = self.engine.api.request(words[1], words[2])
            said = [f"{answer.status} {answer.body.decode().strip()}"]
        else:
            done = self.engine.docker(*words, check=False)
            said = done.lines + [f"! {each}" for each in done.err.splitlines() if each.strip()]
        told = [self._mask(each) for each in said]
        if words[0] == "images":
            told.sort()  # images of one moment have no order
        return told + self._events(since)

    def _events(self, since: float) -> list[str]:
        wanted = '{"type":["image"]}'
        answer = self.engine.api.request("GET", f"/events?since={since:.9f}&until={time.time():.9f}&filters={wanted}")
        found = [json.loads(each) for each in answer.body.splitlines()]
        told = []
        for event in found:
            attributes = event["Actor"]["Attributes"]
            what = attributes.get("name", "") or f"reclaimed {attributes['reclaimed']}"
            told.append(f"~ {event['Action']} {self._mask(event['Actor']['ID'])} {self._mask(what)}".rstrip())
        return told

    def _fill(self, match: re.Match[str]) -> str:
        full = next(key for key, name in self.known.items() if name == match[1])
        return full[: int(match[2] or 64)]

    def _mask(self, text: str) -> str:
        return HEXES.sub(self._name, text.replace(self.registry, "REGISTRY"))

    def _name(self, match: re.Match[str]) -> str:
        for key, name in self.known.items():
            if key.startswith(match[1]):
                return f"<{name}>"
        number = sum(name.startswith("new") for name in self.known.values()) + 1
        self.known[match[1]] = f"new{number}"
        return f"<new{number}>"


def play(stage: Stage, text: str) -> str:
    """The transcript with what really came in place of what was recorded."""
    told: list[str] = []
    for line in text.splitlines():
        if line.startswith("=="):
            stage.reset()
            told += ["", line]
        elif line.startswith("$ "):
            told += [line, *stage.run(line[2:])]
    return "\n".join(told[1:]) + "\n"


def expected(text: str, kind: str) -> str:
    kept = []
    for line in text.splitlines():
        only = re.match(r"(wherry|dockerd)\| ", line)
        if only is None or only[1] == kind:
            kept.append(line[only.end() :] if only else line)
    return "\n".join(kept) + "\n"


@contextlib.contextmanager
def stage(kind: str) -> Iterator[Stage]:
    """An engine and a registry that has one of the base images, in a box of their own."""
    root = short_root()
    try:
        with Box() as box, Registry(box, root / "registry", REGISTRY_PORT, private=False).running() as registry:
            archive = root / "one.tar"
            archive.write_bytes(images.docker_archive([BASE["one"]]))
            for tag in ("team/one:1", "team/one:2"):
                registry.push(f"docker-archive:{archive}:one:latest", tag)
            engine = Engine(box, root, kind=kind)
            engine.start()
            try:
                yield Stage(engine, registry.address)
            finally:
                engine.remove_all_containers()
                engine.stop()
    finally:
        remove_root(root)


@pytest.fixture(scope="module")
def stages() -> Iterator[list[Stage]]:
    """The engine under test, and dockerd besides where it is installed."""
    require_programs("docker", "docker-registry", "skopeo", "nft", "nsenter", "unshare")
    kinds = dict.fromkeys([ENGINE, *(["dockerd"] if shutil.which("dockerd") else [])])
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(stage(kind)) for kind in kinds]


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_line_is_dockers(stages: list[Stage], path: Path) -> None:
    text = path.read_text()
    for stage in stages:
        assert play(stage, text) == expected(text, stage.kind), stage.kind
