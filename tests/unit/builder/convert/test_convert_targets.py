"""What a build is told beside the graph: warnings, answers, platforms, contexts, names."""

import base64
import json

import msgspec
import pytest

from harness.conversion import HOST, Trial
from wherry.builder.dockerfile.convert.drawing import Draft, Drawing, use, wanted_paths
from wherry.builder.dockerfile.convert.naming import go_duration, go_quote, go_rune, shown_platform, step_name, summary
from wherry.builder.graph import (
    Copy,
    Exec,
    Files,
    GitSource,
    ImageSource,
    LocalSource,
    Output,
    ResolveMode,
    Vertex,
    walk,
)
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import ImageConfig, Platform, parse_platform

INPUT = Output(Vertex(op=ImageSource(reference="docker.io/library/input:latest"), name="input"))


def ops(output: Output | None, kind: type) -> list:
    return [vertex.op for vertex in walk([output]) if isinstance(vertex.op, kind)]


# --- warnings ---------------------------------------------------------------------------------------------------------


async def test_findings_are_warnings_below_the_vertex_that_loaded_the_file():
    trial = Trial("FROM alpine:3.20\nMAINTAINER me\nCMD run")
    await trial.target()
    assert [warning.rule for warning in trial.warnings] == ["MaintainerDeprecated", "JSONArgsRecommended"]
    assert {warning.vertex for warning in trial.warnings} == {"sha256:0"}
    assert trial.warnings[0].short.endswith("(line 2)")


async def test_the_shell_of_the_base_image_is_known_to_the_linter():
    trial = Trial("FROM debian\nCMD run $LANG")
    await trial.target()
    assert trial.warnings == []


async def test_checks_can_be_skipped_by_argument():
    trial = Trial("FROM alpine:3.20\nMAINTAINER me", {"build-arg:BUILDKIT_DOCKERFILE_CHECK": "skip=all"})
    await trial.target()
    assert trial.warnings == []


async def test_a_base_for_another_platform_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    trial = Trial("FROM alpine:3.20", {"platform": "linux/arm64"})
    image = trial.images.image

    async def other(reference, platform, mode, *, store, title):
        return await image(reference, HOST, mode, store=store, title=title)

    monkeypatch.setattr(trial.images, "image", other)
    target = await trial.target()
    assert str(target.platform) == "linux/arm64"
    (warning,) = trial.warnings
    assert warning.rule == "InvalidBaseImagePlatform"
    assert 'was pulled with platform "linux/amd64", expected "linux/arm64"' in warning.short


async def test_build_arguments_nobody_takes_are_named():
    arguments = ("TAKEN", "GLOBAL", "TRIGGERED", "MODE", "https_proxy", "BUILDKIT_X", "TARGETOS", "B", "A")
    trial = Trial(
        "ARG GLOBAL\nFROM alpine:3.20 AS unused\nARG TAKEN\nFROM trigger\nONBUILD ARG TRIGGERED",
        {f"build-arg:{name}": "x" for name in arguments},
    )
    await trial.target()
    assert [warning.short for warning in trial.warnings] == [
        "[Warning] One or more build-args [A B TRIGGERED] were not consumed"
    ]


# --- calls ------------------------------------------------------------------------------------------------------------


async def test_a_check_tells_of_what_it_finds_and_of_what_cannot_be_built():
    text = "FROM alpine:3.20\nMAINTAINER me\nCOPY --from=nosuch / /"
    answer = await Trial(text, {"requestid": "frontend.lint"}).answer()
    found = json.loads(answer["result.json"])
    assert [warning["ruleName"] for warning in found["warnings"]] == ["MaintainerDeprecated"]
    assert "nosuch" in found["error"]["message"]
    assert answer["result.statuscode"] == b"1"


async def test_a_check_of_something_that_is_no_dockerfile_is_an_answer_too():
    answer = await Trial("FORM x", {"requestid": "frontend.lint"}).answer()
    assert "unknown instruction: FORM" in json.loads(answer["result.json"])["error"]["message"]


async def test_a_check_without_findings_succeeds():
    answer = await Trial("FROM alpine:3.20\nRUN x", {"requestid": "frontend.lint"}).answer()
    assert json.loads(answer["result.json"])["warnings"] == []
    assert answer["result.statuscode"] == b"0"


@pytest.mark.parametrize(
    ("call", "key"),
    [("frontend.targets", "targets"), ("frontend.outline", "args"), ("frontend.subrequests.describe", "")],
)
async def test_other_calls_are_answered_without_asking_for_images(call: str, key: str):
    trial = Trial("FROM alpine:3.20 AS one\nARG A=1", {"requestid": call})
    found = json.loads((await trial.answer())["result.json"])
    assert found[key] if key else found
    assert trial.images.asked == []


# --- images and platforms ---------------------------------------------------------------------------------------------


async def test_an_image_is_asked_for_in_the_mode_of_the_build_under_buildkits_title():
    trial = Trial("FROM debian", {"image-resolve-mode": "local", "platform": "linux/arm64,linux/amd64"})
    await trial.targets()
    assert trial.images.asked == [
        ("docker.io/library/debian:latest", "linux/arm64", ResolveMode.LOCAL, ""),
        ("docker.io/library/debian:latest", "linux/amd64", ResolveMode.LOCAL, ""),
    ]
    assert trial.images.titles[0] == "[linux/arm64 internal] load metadata for docker.io/library/debian:latest"


async def test_without_a_platform_the_result_is_for_what_its_base_is_for(monkeypatch: pytest.MonkeyPatch):
    trial = Trial("FROM alpine:3.20")
    image = trial.images.image

    async def other(reference, platform, mode, *, store, title):
        return await image(reference, parse_platform("linux/arm/v6"), mode, store=store, title=title)

    monkeypatch.setattr(trial.images, "image", other)
    assert str((await trial.target()).platform) == "linux/arm/v6"


async def test_one_platform_in_an_index_is_named_in_progress():
    target = await Trial("FROM alpine:3.20\nRUN x", {"multi-platform": "true"}).target()
    assert target.output is not None
    assert target.output.vertex.name == "[linux/amd64 2/2] RUN x"


async def test_platforms_share_what_is_the_same_for_all():
    text = "FROM --platform=$BUILDPLATFORM alpine:3.20 AS b\nRUN x\nFROM scratch\nCOPY --from=b /x /\nCOPY y /"
    one, two = await Trial(text, {"platform": "linux/amd64,linux/arm64"}).targets()
    assert len(ops(one.output, Exec) + ops(two.output, Exec)) == 2
    assert len([vertex for vertex in walk([one.output, two.output]) if isinstance(vertex.op, Exec)]) == 1
    assert len([vertex for vertex in walk([one.output, two.output]) if isinstance(vertex.op, LocalSource)]) == 1


async def test_entries_of_history_know_what_made_their_layer():
    target = await Trial("FROM alpine:3.20\nENV A=b\nRUN x").target()
    base, env, run = target.history
    assert base.history.created
    assert not base.history.empty_layer
    assert base.vertex is None
    assert env.history.empty_layer
    assert target.output is not None
    assert run.vertex is target.output.vertex
    assert run.history.comment == "buildkit.dockerfile.v0"


async def test_the_tree_at_the_bottom_is_that_of_the_image_below_all_stages():
    target = await Trial("FROM alpine:3.20 AS a\nRUN x\nFROM a\nRUN y").target()
    assert target.base_output is not None
    assert isinstance(target.base_output.vertex.op, ImageSource)
    assert target.base is not None
    assert target.base.reference == "docker.io/library/alpine:3.20"


# --- contexts ---------------------------------------------------------------------------------------------------------


async def test_the_clients_ignore_file_is_asked_for_when_it_did_not_come_with_the_dockerfile():
    trial = Trial("FROM scratch\nCOPY a /", ignore=None)
    trial.images.ignored = {"context": b"# no\nout\n"}
    (source,) = ops((await trial.target()).output, LocalSource)
    assert source.exclude == ("out",)
    assert trial.images.titles == ["[internal] load .dockerignore"]


async def test_a_context_that_is_no_directory_of_the_client_is_taken_as_it_is():
    trial = Trial("FROM scratch\nCOPY a /", ignore=None, context=INPUT)
    target = await trial.target()
    assert target.output is not None
    assert target.output.vertex.inputs == (None, INPUT)
    assert trial.images.titles == []


async def test_only_a_part_of_such_a_context_can_be_wanted():
    target = await Trial("FROM scratch\nCOPY a /", {"contextsubdir": "in/it"}, context=INPUT).target()
    assert target.output is not None
    part = target.output.vertex.inputs[1]
    assert part is not None
    assert isinstance(part.vertex.op, Files)
    action = part.vertex.op.steps[0].action
    assert isinstance(action, Copy)
    assert (action.source, action.target, action.contents) == ("in/it", "/", True)
    assert part.vertex.inputs == (INPUT,)


async def test_a_named_directory_is_read_with_its_own_ignore_file():
    trial = Trial("FROM scratch\nCOPY --from=www a /", {"context:www": "local:site"})
    trial.images.ignored = {"site": b"*.tmp"}
    (source,) = ops((await trial.target()).output, LocalSource)
    assert source.exclude == ("*.tmp",)
    assert trial.images.titles == ["[context www] load .dockerignore"]


async def test_another_builds_result_is_a_base_with_its_config():
    config = ImageConfig(
        os="linux", architecture="amd64", config=ContainerConfig(env=["FROM=input"], on_build=["RUN t"])
    )
    metadata = json.dumps({"containerimage.config": _base64(msgspec.json.encode(config))})
    target = await Trial(
        "FROM base\nRUN x", {"context:base": "input:k", "input-metadata:k": metadata}, inputs={"k": INPUT}
    ).target()
    trigger, run = ops(target.output, Exec)
    assert "FROM=input" in run.env
    assert trigger.args[-1] == "t"
    assert target.config.on_build is None
    assert target.base_output == INPUT


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_a_stage_that_a_context_replaces_brings_its_triggers_to_those_built_on_it():
    text = "FROM alpine:3.20 AS build\nRUN never\nFROM build\nRUN x"
    target = await Trial(text, {"context:build": "docker-image://trigger"}).target()
    assert [op.args[-1] for op in ops(target.output, Exec)] == ["install $MODE", "x"]


async def test_the_target_itself_can_be_replaced_by_a_directory():
    target = await Trial("FROM alpine:3.20 AS build\nRUN x", {"context:build": "local:d", "target": "build"}).target()
    (source,) = ops(target.output, LocalSource)
    assert source == LocalSource(name="d", shared_key="context:build-")
    assert ops(target.output, Exec) == []
    assert target.output is not None
    assert isinstance(target.output.vertex.op, Files)


async def test_a_git_context_without_scheme_is_a_repository():
    target = await Trial("FROM scratch\nCOPY --from=x / /", {"context:x": "git@example.org:a/b.git"}).target()
    (source,) = ops(target.output, GitSource)
    assert source.remote == "git@example.org:a/b.git"


async def test_scratch_and_context_are_never_replaced():
    attributes = {"context:scratch": "docker-image://nosuch", "context:context": "docker-image://nosuch"}
    target = await Trial("FROM scratch AS context\nCOPY a /", attributes).target()
    assert len(ops(target.output, LocalSource)) == 1


# --- the drawing ------------------------------------------------------------------------------------------------------


def test_paths_below_others_are_not_asked_for_twice():
    assert wanted_paths({"/a", "/a/b", "/a-b", "/a/b/c", "/ab"}) == ("a", "a-b", "ab")
    assert wanted_paths({"/a", "/"}) == ()


def test_what_is_used_of_a_directory_is_known_only_at_the_end():
    drawing = Drawing()
    local = drawing.local(LocalSource(name="context"), "context")
    use(local, "a/./b")
    drawing.add(Draft(op=Files(steps=()), inputs=(None, local), name="x", platform=Platform()))
    use(local, "../c")
    drawing.finish()
    output = drawing.output(local)
    assert output is not None
    assert output.vertex.op == LocalSource(name="context", follow=("a/b", "c"))


async def test_a_thousand_stages_on_each_other_are_no_trouble():
    lines = ["FROM alpine:3.20 AS s0", *(f"RUN {n}" for n in range(2000))]
    lines += [f"FROM s{n} AS s{n + 1}\nRUN x" for n in range(1000)]
    target = await Trial("\n".join(lines), {"build-arg:BUILDKIT_DOCKERFILE_CHECK": "skip=all"}).target()
    assert len(walk([target.output])) == 3001


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1µs"),
        (2_500_000, "2.5ms"),
        (1_000_000_000, "1s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (3_661_500_000_000, "1h1m1.5s"),
    ],
)
def test_durations_are_written_as_go_writes_them(ns: int, text: str):
    assert go_duration(ns) == text


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("\t\n\x00\x7f", '"\\t\\n\\x00\\x7f"'),
        ("é\u200b", '"é\\u200b"'),
        ("\U000e0001", '"\\U000e0001"'),
    ],
)
def test_texts_are_quoted_as_go_quotes_them(text: str, quoted: str):
    assert go_quote(text) == quoted


@pytest.mark.parametrize(
    ("number", "text"), [(3, "'\\x03'"), (39, "'\\''"), (34, "'\"'"), (65, "'A'"), (2**31 - 1, "'\ufffd'")]
)
def test_numbers_are_quoted_as_characters(number: int, text: str):
    assert go_rune(number) == text


def test_places_line_up():
    assert step_name("RUN x", place=3, total=12, stage="build") == "[build  3/12] RUN x"
    assert (
        step_name("RUN x", place=3, total=9, platform="linux/arm64", trigger=True) == "[linux/arm64 3/9] ONBUILD RUN x"
    )


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({}, "linux/amd64"),
        ({"TARGETPLATFORM": "linux/arm64"}, "linux/amd64->arm64"),
        ({"TARGETPLATFORM": "linux/amd64"}, "linux/amd64"),
        ({"TARGETPLATFORM": "windows/amd64"}, "linux/amd64->windows/amd64"),
        ({"TARGETARCH": "arm", "TARGETVARIANT": "v6"}, "linux/amd64->arm/v6"),
        ({"TARGETPLATFORM": "a/b/c/d"}, "linux/amd64"),
    ],
)
def test_a_step_that_makes_something_for_another_machine_says_so(env: dict[str, str], shown: str):
    assert shown_platform(HOST, env) == shown


def test_a_here_document_is_told_by_its_first_line():
    assert summary("\n one\ntwo\n") == "one..."
    assert summary("one\n") == "one"
    assert summary("") == ""
