"""What cannot be built is said in BuildKit's words, at its place."""

import pytest

from harness.conversion import Trial
from wherry.builder.dockerfile.errors import DockerfileError

CASES = {
    "an unknown target": (
        "FROM alpine:3.20 AS build",
        {"target": "buidl"},
        0,
        'target stage "buidl" could not be found',
    ),
    "a near miss of a target": ("FROM alpine:3.20 AS build", {"target": "buidl"}, 0, r"\(did you mean build\?\)"),
    "a base of nothing": ("ARG X\nFROM $X", {}, 2, r"base name \(\$X\) should not be blank"),
    "a misspelled variable": (
        "ARG BASE=alpine\nFROM $BAES",
        {},
        2,
        r"base name \(\$BAES\) should not be blank \(did you mean BASE\?\)",
    ),
    "an empty platform": (
        "FROM --platform=$TARGETPLATFROM alpine:3.20",
        {},
        1,
        r"empty platform value from expression \$TARGETPLATFROM \(did you mean TARGETPLATFORM\?\)",
    ),
    "a platform that is none": ("FROM --platform=a/b/c/d alpine:3.20", {}, 1, "failed to parse platform a/b/c/d"),
    "an image that is not there": (
        "FROM alpine:3.20\nCOPY --from=nosuch / /",
        {},
        2,
        "nosuch: docker.io/library/nosuch:latest: not found",
    ),
    "a near miss of a stage": (
        "FROM alpine:3.20 AS build\nFROM alpine:3.20\nCOPY --from=biuld / /",
        {},
        3,
        r"biuld: .*not found \(did you mean build\?\)",
    ),
    "a name no image can have": (
        "FROM Alpine_",
        {},
        1,
        'failed to parse stage name "Alpine_": invalid reference format',
    ),
    "a stage number too high": ("FROM alpine:3.20\nCOPY --from=7 / /", {}, 2, "invalid stage index 7"),
    "a stage number far too high": (
        "FROM alpine:3.20\nCOPY --from=" + "9" * 5000 + " / /",
        {},
        2,
        "invalid stage index 9",
    ),
    "a stage that comes later": (
        "FROM alpine:3.20 AS one\nCOPY --from=two / /\nFROM alpine:3.20 AS two\nFROM one",
        {},
        2,
        'cannot copy from stage "two", it needs to be defined before current stage "one"',
    ),
    "a mount of a stage that comes later": (
        "FROM alpine:3.20\nRUN --mount=from=two,target=/x true\nFROM alpine:3.20 AS two",
        {"target": "0"},
        2,
        'cannot copy from stage "two"',
    ),
    "a stage from itself": (
        "FROM alpine:3.20 AS one\nCOPY --from=0 / /",
        {},
        2,
        "circular dependency detected on stage: one",
    ),
    "stages from each other": (
        "FROM alpine:3.20 AS one\nCOPY --from=two / /\nFROM alpine:3.20 AS two\nCOPY --from=one / /",
        {},
        2,
        "circular dependency detected on stage: one",
    ),
    "a variable in --from": (
        "FROM alpine:3.20\nARG S=a\nCOPY --from=$S / /",
        {},
        3,
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope "
        "as a workaround",
    ),
    "a mode out of range": (
        "FROM alpine:3.20\nCOPY --chmod=99999 a b",
        {},
        2,
        "invalid chmod parameter: '99999'. it should be octal string and between 0 and 07777",
    ),
    "a URL for COPY": ("FROM alpine:3.20\nCOPY https://example.org/x /", {}, 2, "source can't be a URL for COPY"),
    "a repository for COPY": (
        "FROM alpine:3.20\nCOPY git@example.org:a/b.git /",
        {},
        2,
        "source can't be a git ref for COPY",
    ),
    "a checksum of several": (
        "FROM alpine:3.20\nADD --checksum=sha256:1 https://e.org/a https://e.org/b /x/",
        {},
        2,
        "checksum can't be specified for multiple sources",
    ),
    "a checksum of a file": (
        "FROM alpine:3.20\nADD --checksum=sha256:1 a /x/",
        {},
        2,
        r"checksum requires HTTP\(S\) or Git sources",
    ),
    "a checksum that is none": (
        "FROM alpine:3.20\nADD --checksum=sha256:1 https://e.org/a /x",
        {},
        2,
        "invalid checksum digest length",
    ),
    "two checksums": (
        "FROM alpine:3.20\nADD --checksum=aaa https://e.org/a.git?checksum=bbb /x",
        {},
        2,
        'checksum mismatch "aaa" != "bbb"',
    ),
    "two minds about .git": (
        "FROM alpine:3.20\nADD --keep-git-dir=false https://e.org/a.git?keep-git-dir=true /x",
        {},
        2,
        "inconsistent keep-git-dir configuration",
    ),
    "a here-document without a name": (
        "FROM alpine:3.20\nCOPY <</ /x\n/",
        {},
        2,
        'invalid name of a here-document: "/"',
    ),
    "a mount over everything": ("FROM scratch\nRUN --mount=target=. true", {}, 2, 'invalid mount target "/"'),
    "an ssh agent with a source": (
        "FROM scratch\nRUN --mount=type=ssh,source=x true",
        {},
        2,
        "ssh does not support source",
    ),
    "host network": (
        "FROM scratch\nRUN --network=host true",
        {},
        2,
        "network.host is not allowed: give the build --allow network.host",
    ),
    "an insecure step": ("FROM scratch\nRUN --security=insecure true", {}, 2, "security.insecure is not allowed"),
    "a device": ("FROM scratch\nRUN --device=/dev/fuse true", {}, 2, "device is not allowed"),
    "a port that is none": ("FROM scratch\nEXPOSE http", {}, 2, "invalid containerPort: http"),
    "a protocol that is none": ("FROM scratch\nEXPOSE 80/ipx", {}, 2, "invalid proto: ipx"),
    "too many ports": ("FROM scratch\nEXPOSE" + " 1-65535" * 3, {}, 2, "more than 131072 ports"),
    "a signal that is none": ("FROM scratch\nARG S=x\nSTOPSIGNAL $S", {}, 3, "invalid signal: x"),
    "an empty volume": ("FROM scratch\nVOLUME $NOTHING", {}, 2, "VOLUME specified can not be an empty string"),
    "a variable that must be set": ("FROM scratch\nENV A=${B:?missing}", {}, 2, "B: missing"),
    "a variable that must be set in the global scope": ("ARG A=${B:?missing}\nFROM scratch", {}, 1, "B: missing"),
    "a context of an unknown kind": (
        "FROM base",
        {"context:base": "ftp://x"},
        1,
        "base: unsupported context source ftp for base",
    ),
    "a context that is no repository": ("FROM base", {"context:base": "ssh:x"}, 1, "base: invalid git context ssh:x"),
    "a layout without digest": (
        "FROM base",
        {"context:base": "oci-layout://store:v1"},
        1,
        'oci-layout reference "store:v1" of context base has no name or no digest',
    ),
    "a check that fails the build": (
        "# check=error=true\nfrom alpine:3.20\nRUN x",
        {},
        0,
        "lint violation found for rules: ConsistentInstructionCasing",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_what_cannot_be_built_is_refused_at_its_line(case: str):
    text, attributes, line, words = CASES[case]
    with pytest.raises(DockerfileError, match=words) as caught:
        await Trial(text, attributes).targets()
    location = caught.value.location
    assert (location.ranges[0].start if location is not None else 0) == line


async def test_a_trigger_of_the_base_image_fails_at_the_from(monkeypatch: pytest.MonkeyPatch):
    from harness import conversion
    from wherry.spec.engine import ContainerConfig

    images = {"docker.io/library/bad:latest": ContainerConfig(on_build=["COPY --from=9 / /"])}
    monkeypatch.setattr(conversion, "IMAGES", images)
    with pytest.raises(DockerfileError, match="invalid stage index 9") as caught:
        await Trial("# a comment\nFROM bad\nRUN x").targets()
    assert caught.value.location is not None
    assert caught.value.location.ranges[0].start == 2


async def test_a_stage_that_is_not_needed_may_be_wrong():
    text = "FROM nosuch AS wrong\nCOPY --from=9 / /\nRUN --network=host x\nFROM alpine:3.20\nRUN right"
    trial = Trial(text)
    await trial.target()
    assert [reference for reference, *_ in trial.images.asked] == ["docker.io/library/alpine:3.20"]


async def test_a_bad_dockerignore_is_named():
    with pytest.raises(DockerfileError, match=r"failed parsing \.dockerignore: syntax error in pattern"):
        await Trial("FROM scratch\nCOPY a b", ignore=b"[").targets()
