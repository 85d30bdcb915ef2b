"""Events of a build as the classic builder would have told them, and as documents."""

from collections.abc import Sequence

import pytest

from wherry.api.build_output import Classic, Kind, Line, Step, document, failure_line
from wherry.builder.graph import Location, Range
from wherry.builder.log import Event, LogEvent, StatusEvent, VertexEvent, WarningEvent

BASE = "sha256:" + "b" * 64
IMAGE = "sha256:" + "1" * 64
STEPS = [
    Step(Kind.GLOBAL, "ARG V=1"),
    Step(Kind.BASE, "FROM busybox", "0/1"),
    Step(Kind.CONFIG, "ENV a=b", "0/2"),
    Step(Kind.RUN, "RUN make", "0/3"),
    Step(Kind.FILES, "COPY a /a", "0/4"),
    Step(Kind.CONFIG, 'CMD ["sh"]', "0/5"),
]


def key(slot: str) -> str:
    return "sha256:" + slot.replace("/", "").ljust(64, "0")


def vertex(slot: str, name: str = "", *, started: int = 1, done: bool = True, cached: bool = False) -> VertexEvent:
    return VertexEvent(
        key=key(slot), name=name, slot=slot, started=started, completed=2 if done else 0, cached=cached and done
    )


def text_of(lines: Sequence[Line]) -> str:
    return "".join(str(line["stream"]) for line in lines if "stream" in line)


def told(steps: Sequence[Step], events: Sequence[Event], image: str = IMAGE, names: Sequence[str] = ()) -> str:
    classic = Classic(steps)
    lines = [line for event in events for line in classic.tell(event)]
    return text_of([*lines, *classic.end(image, names)])


def test_a_build_reads_like_dockerds() -> None:
    shown = told(
        STEPS,
        [
            vertex("0/1", f"[1/3] FROM docker.io/library/busybox@{BASE}"),
            vertex("0/3", done=False),
            LogEvent(vertex=key("0/3"), stream=1, data=b"made\n"),
            LogEvent(vertex=key("0/3"), stream=2, data=b"err\n"),
            vertex("0/3"),
            vertex("0/4"),
        ],
        names=["one:latest"],
    )
    running = shown.partition("Running in ")[2][:12]
    env, made, copied = (
        shown.partition(f"{said}\n ---> ")[2][:12] for said in ("ENV a=b", f"container {running}", "COPY a /a")
    )
    assert len({env, made, copied}) == 3
    assert all(len(name.strip()) == 12 for name in (env, made, copied))
    assert shown == (
        "Step 1/6 : ARG V=1\n"
        "Step 2/6 : FROM busybox\n"
        f" ---> {'b' * 12}\n"
        "Step 3/6 : ENV a=b\n"
        f" ---> {env}\n"
        "Step 4/6 : RUN make\n"
        f" ---> Running in {running}\n"
        "made\n"
        "\x1b[91merr\n\x1b[0m"
        f"Removing intermediate container {running}\n"
        f" ---> {made}\n"
        "Step 5/6 : COPY a /a\n"
        f" ---> {copied}\n"
        'Step 6/6 : CMD ["sh"]\n'
        " ---> 111111111111\n"
        "Successfully built 111111111111\n"
        "Successfully tagged one:latest\n"
    )


def test_a_build_from_the_cache_says_so_at_every_step() -> None:
    shown = told(STEPS[1:], [vertex("0/1"), vertex("0/3", cached=True), vertex("0/4", cached=True)])
    assert shown.count(" ---> Using cache\n") == 4, "RUN and COPY, and what only changes the config around them"
    assert "Running in" not in shown


def test_steps_that_are_done_ahead_of_their_turn_wait_for_it() -> None:
    steps = [
        Step(Kind.BASE, "FROM a AS a", "a/1"),
        Step(Kind.RUN, "RUN one", "a/2"),
        Step(Kind.BASE, "FROM b", "1/1"),
        Step(Kind.RUN, "RUN two", "1/2"),
    ]
    classic = Classic(steps)
    first = [
        *classic.tell(vertex("a/1")),
        *classic.tell(vertex("1/1")),
        *classic.tell(vertex("a/2", done=False)),
        *classic.tell(vertex("1/2", done=False)),
        *classic.tell(LogEvent(vertex=key("1/2"), stream=1, data=b"second\n")),
        *classic.tell(vertex("1/2")),
        *classic.tell(LogEvent(vertex=key("a/2"), stream=1, data=b"first\n")),
    ]
    assert text_of(first).endswith("first\n")
    assert "second" not in text_of(first)
    rest = text_of([*classic.tell(vertex("a/2")), *classic.end(IMAGE, [])])
    assert rest.index("RUN two") < rest.index("Running in") < rest.index("second\n")


def test_output_of_a_running_step_is_told_at_once() -> None:
    classic = Classic(STEPS[1:])
    list(classic.tell(vertex("0/1")))
    assert "RUN make" in text_of(list(classic.tell(vertex("0/3", done=False))))
    assert text_of(list(classic.tell(LogEvent(vertex=key("0/3"), stream=1, data=b"a")))) == "a"


def test_a_character_may_come_in_two_pieces() -> None:
    classic = Classic(STEPS[1:])
    list(classic.tell(vertex("0/1")))
    list(classic.tell(vertex("0/3", done=False)))
    parts = [
        text_of(list(classic.tell(LogEvent(vertex=key("0/3"), stream=1, data=part)))) for part in (b"\xc3", b"\xa4!")
    ]
    assert parts == ["", "ä!"]


def test_from_scratch_has_no_name_and_no_work() -> None:
    shown = told([Step(Kind.SCRATCH, "FROM scratch", "0/1"), Step(Kind.CONFIG, "LABEL a=b", "0/2")], [])
    assert shown.startswith("Step 1/2 : FROM scratch\n ---> \nStep 2/2 : LABEL a=b\n ---> 111111111111\n")


def test_a_failed_step_ends_the_stream_in_docker_words() -> None:
    classic = Classic(STEPS[1:])
    lines = [
        *classic.tell(vertex("0/1")),
        *classic.tell(vertex("0/3", done=False)),
        *classic.tell(LogEvent(vertex=key("0/3"), stream=1, data=b"x\n")),
        *classic.tell(VertexEvent(key=key("0/3"), name="", slot="0/3", started=1, completed=2, error="exit code: 3")),
        *classic.fail(
            'process "/bin/sh -c echo "x"; exit 3" did not complete successfully: exit code: 3', removed=True
        ),
    ]
    assert text_of(lines).count("Removing intermediate container") == 1
    words = "The command '/bin/sh -c echo \"x\"; exit 3' returned a non-zero code: 3"
    assert lines[-1] == {"errorDetail": {"code": 3, "message": words}, "error": words}


def test_another_failure_keeps_its_words() -> None:
    assert failure_line("no such image: x") == {
        "errorDetail": {"message": "no such image: x"},
        "error": "no such image: x",
    }


def test_a_layer_on_its_way_is_told_as_by_pull() -> None:
    classic = Classic(STEPS[1:])
    layer = "c" * 64
    vertex_ = key("0/1")
    lines = [
        *classic.tell(vertex("0/1", done=False)),
        *classic.tell(StatusEvent(vertex=vertex_, id=f"sha256:{layer}", current=5, total=10)),
        *classic.tell(StatusEvent(vertex=vertex_, id=f"sha256:{layer}", current=10, total=10, completed=3)),
        *classic.tell(StatusEvent(vertex=vertex_, id=f"extracting sha256:{layer}", completed=3)),
        *classic.tell(StatusEvent(vertex=vertex_, id="resolve docker.io/library/busybox:latest")),
    ]
    assert [line for line in lines if "status" in line] == [
        {"status": "Downloading", "progressDetail": {"current": 5, "total": 10}, "id": "c" * 12},
        {"status": "Download complete", "progressDetail": {}, "id": "c" * 12},
        {"status": "Pull complete", "progressDetail": {}, "id": "c" * 12},
    ]


def test_what_was_not_consumed_is_told_before_the_end() -> None:
    shown = told(
        STEPS[1:2],
        [
            WarningEvent(vertex="", rule="", short="[Warning] One or more build-args [x] were not consumed"),
            WarningEvent(vertex="", rule="StageNameCasing", short="a stage's name"),
        ],
    )
    assert shown.endswith("[Warning] One or more build-args [x] were not consumed\nSuccessfully built 111111111111\n")
    assert "a stage's name" not in shown


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            VertexEvent(key="sha256:1", name="RUN x", inputs=("sha256:2",), started=1, why="the command changed"),
            {
                "vertex": {
                    "key": "sha256:1",
                    "name": "RUN x",
                    "inputs": ["sha256:2"],
                    "started": 1,
                    "why": "the command changed",
                }
            },
        ),
        (
            StatusEvent(vertex="v", id="transferring context:", current=3, at=9),
            {"status": {"vertex": "v", "id": "transferring context:", "current": 3, "at": 9}},
        ),
        (
            LogEvent(vertex="v", stream=1, data="ä".encode(), at=9),
            {"log": {"vertex": "v", "stream": 1, "text": "ä", "at": 9}},
        ),
        (
            LogEvent(vertex="v", stream=2, data=b"\xff", at=9),
            {"log": {"vertex": "v", "stream": 2, "data": "/w==", "at": 9}},
        ),
        (
            WarningEvent(
                vertex="v",
                rule="R",
                short="s",
                detail=("d",),
                location=Location("Dockerfile", b"FROM x", (Range(1, 2),)),
            ),
            {
                "warning": {
                    "vertex": "v",
                    "rule": "R",
                    "short": "s",
                    "detail": ["d"],
                    "filename": "Dockerfile",
                    "lines": [[1, 2]],
                }
            },
        ),
    ],
)
def test_an_event_is_a_document_of_one_key(event: Event, expected: object) -> None:
    assert document(event) == expected
