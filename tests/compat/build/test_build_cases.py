"""Every instruction and option of the Dockerfile language, held against what BuildKit made of it, through each door.

What is expected was recorded (harness/build_cases.py). All doors must give one and the same image: builds are
reproducible, so its ID is compared. Cases are built four at a time, as a busy engine would.

By default `wherry build` plays every case, buildx and the classic builder every fifth; WHERRY_TEST_DOORS=all makes
them play all.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import build_cases as cases
from harness.buildx import building_engine, docker_classic, docker_with_plugins
from harness.engine import Cli, Engine, Result

pytestmark = pytest.mark.not_dockerd("records what is expected, and knows one door less")

AT_ONCE = 4
EVERY = 1 if os.environ.get("WHERRY_TEST_DOORS") == "all" else 5
EPOCH = f"--build-arg=SOURCE_DATE_EPOCH={cases.MTIME}"  # the context's newest file is another one with each door
CLASSIC_OPTIONS = ("--build-arg", "--target", "--label", "--add-host", "--network", "--shm-size", "--ulimit")
WHOLE_CONTEXT = re.compile(r"^COPY (--\S+ )*\. |--mount=\S*target=/src", re.MULTILINE)
CLASSIC_HAS_WORDS = re.compile('^process |": not found$')  # the classic builder's own, of 20.10
CLASSIC_WORDS = re.compile("The command '|OCI runtime create failed|file not found in build context|: not found")
CASES = cases.all_cases()


def suits_classic(case: cases.Case) -> bool:
    """The classic client knows its options, and the Dockerfile it puts into the context is not seen in the result."""
    options = case.args(Path(), Path())
    known = all(option.startswith(CLASSIC_OPTIONS) for option in options)
    return known and not WHOLE_CONTEXT.search(case.dockerfile.read_text())


@dataclass(frozen=True)
class Stage:
    """Where the cases are played."""

    engine: Engine
    work: Path
    buildx: Cli
    classic: Cli

    def options(self, case: cases.Case) -> list[str]:
        return [EPOCH, *case.args(self.work / "context", self.work / "secret")]

    def build(self, case: cases.Case, door: str) -> list[str]:
        """What is wrong with the result of one door."""
        tag = f"{door}-{case.name}"
        client = {"wherry": self.engine.wherry, "buildx": self.buildx, "classic": self.classic}[door]
        command = ["buildx", "build"] if door == "buildx" else ["build"]
        argv = [*command, "-t", tag, "-f", str(case.dockerfile), *self.options(case)]
        done = client(*argv, str(case.context(self.work / "context")), check=False, env=cases.SECRET_VARIABLE)
        if "error" in case.expected:
            return self.failure(case, done, door)
        if done.code:
            return [f"exit code {done.code}", *done.err.strip().splitlines()[-12:], *done.out.splitlines()[-3:]]
        return cases.differences(case.expected, self.image(tag) | self.output(case, done, door))

    def failure(self, case: cases.Case, done: Result, door: str) -> list[str]:
        if done.code == 0:
            return [f"went through, and should have failed with {case.expected['error']}"]
        if door != "classic":
            return cases.differences(case.expected, cases.failure(done.err))
        if CLASSIC_HAS_WORDS.search(case.expected["error"]):
            return [] if CLASSIC_WORDS.search(done.err) else [done.err]
        return cases.differences({"error": case.expected["error"]}, {"error": done.err})

    def output(self, case: cases.Case, done: Result, door: str) -> cases.Document:
        """A step that another door has run says nothing any more."""
        said = cases.said(done) if door == "wherry" else case.expected.get("output", [])
        return {"output": said} if said else {}

    def image(self, tag: str) -> cases.Document:
        answer = self.engine.api.request("GET", f"/images/{tag}/get")
        assert answer.status == 200, answer.body
        return cases.describe(answer.body)

    def id(self, tag: str) -> str:
        return str(self.engine.api.get(f"/images/{tag}/json")["Id"])

    def play(self, case: cases.Case, others: bool) -> list[str]:
        """What is wrong, by door."""
        doors = ["wherry"]
        if others:
            doors += ["buildx", *(["classic"] if suits_classic(case) else [])]
        wrong = [f"{door}: {line}" for door in doors for line in self.build(case, door)]
        if not wrong and "error" not in case.expected:
            found = {door: self.id(f"{door}-{case.name}") for door in doors}
            if len(set(found.values())) > 1:
                wrong.append(f"other images through other doors: {found}")
        return wrong


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wherry-cases-")))
        (work / "context").mkdir()
        cases.write_context(work / "context")
        (work / "secret").write_bytes(cases.SECRET)
        engine = stack.enter_context(building_engine(cases.base_images()))
        stack.enter_context(cases.servers(engine.box, work))
        yield Stage(engine, work, docker_with_plugins(engine), docker_classic(engine))


@pytest.fixture(scope="module")
def played(stage: Stage, request: pytest.FixtureRequest) -> Iterator[Callable[[cases.Case], list[str]]]:
    """The result of a case; those that are going to be asked for are played ahead."""
    selected = {item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: dict[str, Future[list[str]]] = {}
        for number, case in enumerate(CASES):
            if case in selected:
                futures[case.name] = pool.submit(stage.play, case, number % EVERY == 0)
        yield lambda case: futures[case.name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_result_is_the_recorded_one(case: cases.Case, played: Callable[[cases.Case], list[str]]) -> None:
    wrong = played(case)
    dockerfile = case.dockerfile.read_text(errors="replace")
    assert not wrong, f"{case.name}:\n{dockerfile}\n" + "\n".join(wrong)
