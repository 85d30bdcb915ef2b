"""Networks and volumes, told line by line as Docker's own daemon tells it.

`transcripts/network/*.txt` were recorded on dockerd 26; here they are played to the engine under test. A transcript is
a list of scenes, each from an engine without containers, networks and volumes of its own:

    == what the scene shows
    $ docker's arguments               or: $ api METHOD /path [body]
    what it prints, errors with "! ", an exit code other than 0 with "? "; then the events of networks, with "~ "

Identifiers are written <1>, <2>, … in the order they are seen, times <time>, addresses of interfaces that nobody
chose <mac>; JSON of the API is sorted. Lines of one engine alone begin with "wherry| " or "dockerd| ".
"""

import itertools
import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import images
from harness.box import Box
from harness.engine import Engine, remove_root, short_root
from harness.engines import new_engine

TRANSCRIPTS = Path(__file__).parent / "transcripts/network"
MODEL = 26  # major version of the dockerd that transcripts were recorded on
PREDEFINED = ("bridge", "host", "none")
HEXES = re.compile(r"\b([0-9a-f]{64}|[0-9a-f]{12})\b")
MAC = re.compile(r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b")
BRIDGE = re.compile(r"\b(docker0|wherry0|wh-[0-9a-f]{8})\b")  # of the default network
CHOSEN = "92:"  # how the addresses begin that transcripts ask for
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*( [+-]\d{4} \w+|Z|[+-]\d\d:\d\d)?")


class Stage:
    """Where scenes are played: an engine with busybox, and the identifiers it has shown."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.kind = "dockerd" if engine.is_dockerd else "wherry"
        self.known: list[str] = []

    def reset(self) -> None:
        self.engine.remove_all_containers()
        for network in self.engine.api.get("/networks"):
            if network["Name"] not in PREDEFINED:
                self.engine.api.request("DELETE", f"/networks/{network['Id']}")
        for volume in self.engine.api.get("/volumes")["Volumes"] or []:
            self.engine.api.request("DELETE", f"/volumes/{volume['Name']}")
        self.known = []

    def run(self, line: str) -> list[str]:
        since = time.time()
        if line.startswith("api "):
            told = self._call(*line.split(" ", 3)[1:])
        else:
            done = self.engine.docker(*shlex.split(line), check=False)
            told = done.lines + [f"! {each}" for each in done.err.splitlines() if each.strip()]
            told += [f"? {done.code}"] if done.code else []
        return [self._mask(each).rstrip() for each in told + self._events(since)]

    def _call(self, method: str, path: str, body: str = "") -> list[str]:
        answer = self.engine.api.request(method, path, json.loads(body) if body else None)
        try:
            shown = json.dumps(answer.json(), indent=1, sort_keys=True).splitlines() if answer.body else []
        except ValueError:
            shown = answer.body.decode(errors="replace").splitlines()
        return [str(answer.status), *shown]

    def _events(self, since: float) -> list[str]:
        wanted = '{"type":["network","volume"]}'
        answer = self.engine.api.request("GET", f"/events?since={since:.9f}&until={time.time():.9f}&filters={wanted}")
        events = [json.loads(each) for each in answer.body.splitlines()]
        told: list[str] = []
        for _, alike in itertools.groupby(events, lambda event: (event["Type"], event["Action"])):
            told += sorted(
                map(describe_event, alike), key=lambda text: text.partition(" name=")[2]
            )  # its order is random
        return told

    def _mask(self, text: str) -> str:
        text = BRIDGE.sub("<bridge>", text.replace(str(self.engine.data_root), "DATA"))
        text = MAC.sub(lambda match: match[0] if match[0].startswith(CHOSEN) else "<mac>", TIME.sub("<time>", text))
        return HEXES.sub(self._name, text)

    def _name(self, match: re.Match[str]) -> str:
        for number, known in enumerate(self.known):
            if known.startswith(match[1]) or match[1].startswith(known):
                return f"<{number + 1}>"
        self.known.append(match[1])
        return f"<{len(self.known)}>"


def describe_event(event: Any) -> str:
    attributes = event["Actor"]["Attributes"]
    words = [f"{key}={attributes[key]}" for key in sorted(attributes)]
    return " ".join(["~", event["Type"], event["Action"], event["Actor"]["ID"], *words])


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
        only = re.match(r"(wherry|dockerd)\| ?", line)
        if only is None or only[1] == kind:
            kept.append(line[only.end() :] if only else line)
    return "\n".join(kept) + "\n"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    root = short_root()
    try:
        with Box() as box:
            engine = new_engine(box, root)
            engine.start()
            try:
                if engine.is_dockerd and int(engine.api.get("/version")["Version"].partition(".")[0]) < MODEL:
                    pytest.skip(f"missing: dockerd {MODEL} or newer (`scripts/real-clients yardstick` brings it)")
                engine.load(images.docker_archive([images.busybox(), images.configured()]))
                made = Stage(engine)
                yield made
                made.reset()
            finally:
                engine.stop()
    finally:
        remove_root(root)


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_line_is_dockers(stage: Stage, path: Path) -> None:
    text = path.read_text()
    assert play(stage, text) == expected(text, stage.kind)
