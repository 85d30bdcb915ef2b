"""`--call outline`, `targets`: what a Dockerfile takes and what it makes."""

import json

import pytest

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.outline import describe, outline, targets
from wherry.builder.dockerfile.stages import parse_dockerfile

TEXT = b"""ARG base=box
ARG suffix=-${base}
ARG unused=1
# VERSION of the thing
ARG VERSION
# build compiles
FROM busy${base}${suffix} AS build
ARG VERSION
# JOBS to run at a time
ARG JOBS=$VERSION-4 OTHER
RUN --mount=type=secret,id=token,required --mount=type=secret,target=/run/key --mount=type=ssh make
RUN --mount=type=cache,target=/c --mount=type=cache,id=i,target=/d --mount=type=secret,id=token true
FROM scratch AS side
ARG SIDE=1
RUN --mount=type=ssh,id=git,required true
FROM --platform=linux/arm64 scratch AS last
COPY --from=build /x /
RUN --mount=from=side,target=/s true
FROM last
"""


def asked(target: str = "", **arguments: str) -> dict:
    return json.loads(outline(parse_dockerfile(TEXT), target=target, build_args=arguments)["result.json"])


def values(told: dict) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in told["args"]}


def test_arguments_are_those_a_target_uses_with_their_values():
    told = asked("build", VERSION="3", base="cat")
    assert told["name"] == "build"
    assert told["description"] == "compiles"
    assert values(told) == {"base": "cat", "suffix": "-cat", "VERSION": "3", "JOBS": "3-4", "OTHER": ""}
    assert [entry["name"] for entry in told["args"]] == ["base", "suffix", "VERSION", "JOBS", "OTHER"]
    assert told["args"][2] == {
        "name": "VERSION",
        "description": "of the thing",
        "value": "3",
        "location": {"ranges": [{"start": {"line": 5}, "end": {"line": 5}}]},
    }
    assert told["args"][3]["description"] == "to run at a time"


def test_secrets_agents_and_caches_are_those_of_its_steps():
    told = asked("build")
    assert [(entry["name"], entry.get("required", False)) for entry in told["secrets"]] == [
        ("token", True),
        ("key", False),
    ]
    assert [entry["name"] for entry in told["ssh"]] == ["default"]
    assert [entry["ID"] for entry in told["cache"]] == ["/c", "i"]


def test_stages_that_a_target_is_made_from_count_and_others_do_not():
    assert values(asked("side")) == {"SIDE": "1"}
    assert "secrets" not in asked("side")
    everything = asked()
    assert set(values(everything)) == {"base", "suffix", "VERSION", "JOBS", "OTHER", "SIDE"}
    assert {entry["name"]: entry.get("required", False) for entry in everything["ssh"]} == {
        "default": False,
        "git": True,
    }
    assert "name" not in everything


def test_an_outline_as_text():
    text = outline(parse_dockerfile(TEXT), target="side")["result.txt"].decode()
    assert text == (
        "TARGET: side\n\nBUILD ARG   VALUE   DESCRIPTION\nSIDE        1       \n\nSSH   REQUIRED\ngit   true\n\n"
    )


def test_a_target_that_is_not_there_has_no_outline():
    with pytest.raises(DockerfileError, match=r'target stage "biuld" could not be found \(did you mean build\?\)'):
        outline(parse_dockerfile(TEXT), target="biuld")


def test_stages_that_refer_to_each_other_come_to_an_end():
    text = b"FROM b AS a\nCOPY --from=b x y\nFROM a AS b\nCOPY --from=b --from=a x y\n".replace(b" --from=b --", b" --")
    assert json.loads(outline(parse_dockerfile(text))["result.json"])["name"] == "b"


def test_values_that_make_no_sense_leave_the_rest():
    text = b"ARG x=${\nFROM scratch\nARG y=${z\nRUN --mount=type=$t,target=/x true\n"
    assert values(json.loads(outline(parse_dockerfile(text))["result.json"])) == {"y": ""}


def test_targets_with_their_bases():
    documents = targets(parse_dockerfile(TEXT))
    told = json.loads(documents["result.json"])
    assert told["targets"][0] == {
        "name": "build",
        "description": "compiles",
        "base": "busy${base}${suffix}",
        "location": {"ranges": [{"start": {"line": 7}, "end": {"line": 7}}]},
    }
    assert told["targets"][2]["platform"] == "linux/arm64"
    assert told["targets"][3] == {
        "default": True,
        "base": "last",
        "location": {"ranges": [{"start": {"line": 19}, "end": {"line": 19}}]},
    }
    assert documents["result.txt"].decode() == (
        "TARGET    DESCRIPTION\nbuild     compiles\nside      \nlast      \n(default) \n"
    )
    assert targets(parse_dockerfile(b"FROM a AS b"))["result.txt"] == b"TARGET      DESCRIPTION\nb (default) \n"


def test_requests_describe_themselves():
    documents = describe()
    told = {request["name"]: request for request in json.loads(documents["result.json"])}
    assert list(told) == [
        "frontend.outline", "frontend.targets", "frontend.lint", "frontend.subrequests.describe",
    ]  # fmt: skip
    assert told["frontend.outline"]["opts"] == [{"name": "target", "description": "Target build stage"}]
    assert {request["version"] for request in told.values()} == {"1.0.0"}
    assert [name["name"] for name in told["frontend.lint"]["metadata"]] == [
        "result.json", "result.txt", "result.statuscode",
    ]  # fmt: skip
    assert (
        documents["result.txt"].decode().splitlines()[2]
        == "targets              1.0.0   List all targets current build supports"
    )
