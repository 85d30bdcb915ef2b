"""Build checks: docker's rules, in docker's words."""

import base64
import json

import pytest

from wherry.builder.dockerfile import rules
from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.ignore import Patterns
from wherry.builder.dockerfile.lint import Base, checks_of, lint
from wherry.builder.dockerfile.outline import lint_result
from wherry.builder.dockerfile.rules import Checks, Rule, parse_checks
from wherry.builder.dockerfile.stages import parse_dockerfile

ALL = Checks(experimental_all=True)
RULES = [value for value in vars(rules).values() if isinstance(value, Rule)]


def found(text: str, **options) -> list[tuple[str, int, str]]:
    findings = lint(parse_dockerfile(text.encode()), checks=options.pop("checks", ALL), **options)
    return [(finding.rule.name, finding.line, finding.message) for finding in findings]


def only(rule: str, text: str, **options) -> list[tuple[int, str]]:
    return [(line, message) for name, line, message in found(text, **options) if name == rule]


CASES = [
    ("StageNameCasing", "FROM a AS Base\n", [(1, "Stage name 'Base' should be lowercase")]),
    ("StageNameCasing", "FROM a AS base\n", []),
    ("FromAsCasing", "FROM a as b\n", [(1, "'as' and 'FROM' keywords' casing do not match")]),
    ("FromAsCasing", "from a AS b\n", [(1, "'AS' and 'from' keywords' casing do not match")]),
    ("FromAsCasing", "From a AS b\n", []),
    ("FromAsCasing", "FROM a AS b\nfrom b as c\n", []),
    ("NoEmptyContinuation", "FROM a\nRUN x \\\n  # y\n\n\n  z\n", [(4, "Empty continuation line")]),
    ("NoEmptyContinuation", "FROM a\nRUN x \\\n  # y\n  z\n\n", []),
    (
        "ConsistentInstructionCasing",
        "FROM a\nrun x\nRUN y\nRun z\n",
        [
            (2, "Command 'run' should match the case of the command majority (uppercase)"),
            (4, "Command 'Run' should match the case of the command majority (uppercase)"),
        ],
    ),
    (
        "ConsistentInstructionCasing",
        "FROM a\nrun x\nrun y\n",
        [(1, "Command 'FROM' should match the case of the command majority (lowercase)")],
    ),
    (
        "DuplicateStageName",
        "FROM a AS b\nFROM a AS B\nFROM a\nFROM a\n",
        [(2, 'Duplicate stage name "b", stage names should be unique')],
    ),
    (
        "ReservedStageName",
        "FROM a AS scratch\nFROM a AS context\n",
        [
            (1, 'Stage name should not use the same name as reserved stage "scratch"'),
            (2, 'Stage name should not use the same name as reserved stage "context"'),
        ],
    ),
    (
        "JSONArgsRecommended",
        "FROM a\nENTRYPOINT x\ncmd y\n",
        [
            (2, "JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals"),
            (3, "JSON arguments recommended for cmd to prevent unintended behavior related to OS signals"),
        ],
    ),
    ("JSONArgsRecommended", 'FROM a\nCMD ["x"]\nRUN y\nHEALTHCHECK CMD z\n', []),
    ("JSONArgsRecommended", 'FROM a AS b\nSHELL ["/bin/bash", "-c"]\nCMD x\nFROM b\nCMD y\n', []),
    (
        "MaintainerDeprecated",
        "FROM a\nMAINTAINER me\n",
        [(2, "Maintainer instruction is deprecated in favor of using label")],
    ),
    (
        "UndefinedArgInFrom",
        "ARG VERSION=1\nFROM a:$VERSOIN\nFROM --platform=$BUILDPLATFORM b:${VERSION}${OTHER:-x}\n",
        [(2, "FROM argument 'VERSOIN' is not declared (did you mean VERSION?)")],
    ),
    ("UndefinedArgInFrom", "FROM a AS b\nARG x=1\nFROM $x\n", [(3, "FROM argument 'x' is not declared")]),
    ("UndefinedArgInFrom", "ARG x\nFROM $x\n", []),
    (
        "InvalidDefaultArgInFrom",
        "ARG V\nFROM a:$V\nFROM a:${V:-1}\nFROM $V\n",
        [
            (2, "Default value for ARG a:$V results in empty or invalid base image name"),
            (4, "Default value for ARG $V results in empty or invalid base image name"),
        ],
    ),
    ("InvalidDefaultArgInFrom", "ARG V=1\nARG W=a:$V\nFROM $W\n", []),
    (
        "UndefinedVar",
        "FROM scratch\nENV foo=1\nARG bar\nCOPY $fooo $bar ${no:-1} '$quoted' \\$escaped $TARGETARCH /\n",
        [
            (4, "Usage of undefined variable '$TARGETARCH'"),
            (4, "Usage of undefined variable '$fooo' (did you mean $foo?)"),
        ],
    ),
    ("UndefinedVar", "FROM scratch\nRUN echo $x\nENV PATH=$PATH:/x\nCMD $y\n", []),
    ("UndefinedVar", "FROM scratch\nENV a=$b b=1\nLABEL x=$b\n", [(2, "Usage of undefined variable '$b'")]),
    ("UndefinedVar", "FROM scratch AS a\nENV x=1\nFROM a\nUSER $x\nWORKDIR /$y\n",
     [(5, "Usage of undefined variable '$y'")]),
    ("UndefinedVar", "FROM scratch\nRUN --mount=type=cache,target=$dir true\n",
     [(2, "Usage of undefined variable '$dir'")]),
    ("UndefinedVar", "FROM image\nENV VERSION=1\nCOPY $whatever $VERSON /\n",
     [(3, "Usage of undefined variable '$VERSON' (did you mean $VERSION?)")]),
    (
        "WorkdirRelativePath",
        "FROM a AS b\nWORKDIR app/src\nWORKDIR /x\nWORKDIR y\nFROM b\nWORKDIR z\n",
        [(2, 'Relative workdir "app/src" can have unexpected results if the base image changes')],
    ),
    ("WorkdirRelativePath", "FROM a\nARG dir=/x\nWORKDIR $dir\nWORKDIR y\nFROM a\nWORKDIR $home/x\n", []),
    ("WorkdirRelativePath", "FROM scratch\nWORKDIR $home\n",
     [(2, 'Relative workdir "" can have unexpected results if the base image changes')]),
    (
        "MultipleInstructionsDisallowed",
        "FROM a\nCMD x\nENTRYPOINT y\nCMD z\nHEALTHCHECK NONE\nHEALTHCHECK CMD x\nFROM a\nCMD x\n",
        [
            (2, "Multiple CMD instructions should not be used in the same stage because only the last one will be "
             "used"),
            (5, "Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one "
             "will be used"),
        ],
    ),
    (
        "LegacyKeyValueFormat",
        "FROM a\nENV x y\nlabel x y\nENV x=y\n",
        [
            (2, '"ENV key=value" should be used instead of legacy "ENV key value" format'),
            (3, '"label key=value" should be used instead of legacy "label key value" format'),
        ],
    ),
    (
        "RedundantTargetPlatform",
        "FROM --platform=$TARGETPLATFORM a\nFROM --platform=$BUILDPLATFORM a\n",
        [(1, "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior")],
    ),
    (
        "SecretsUsedInArgOrEnv",
        "ARG GLOBAL_TOKEN\nFROM a\nARG API_TOKEN\nENV password=1 PUBLIC_KEY=1 TOKEN_FILE=1 monkey=1 AUTH_X=2\n",
        [
            (3, 'Do not use ARG or ENV instructions for sensitive data (ARG "API_TOKEN")'),
            (4, 'Do not use ARG or ENV instructions for sensitive data (ENV "password")'),
            (4, 'Do not use ARG or ENV instructions for sensitive data (ENV "AUTH_X")'),
        ],
    ),
    (
        "FromPlatformFlagConstDisallowed",
        "FROM --platform=linux/arm64 a\nFROM --platform=linux/arm64 a AS build-arm64\nFROM --platform=nonsense a\n",
        [(1, 'FROM --platform flag should not use constant value "linux/arm64"')],
    ),
    (
        "InvalidDefinitionDescription",
        "# bar is x\nARG foo\n# says nothing\nFROM a AS base\n# x\nARG a b\n# base it is\nFROM a AS base\n# y\nRUN x\n"
        "# z\nFROM a\n\n# q\n\nARG c\n",
        [
            (2, "Comment for ARG should follow the format: `# foo <description>`"),
            (4, "Comment for FROM should follow the format: `# base <description>`"),
            (6, "Comment for ARG should follow the format: `# <arg_key> <description>`"),
        ],
    ),
    (
        "ExposeProtoCasing",
        "FROM a\nEXPOSE 80/TcP 81/udp\n",
        [(2, "Defined protocol '80/TcP' in EXPOSE instruction should be lowercase")],
    ),
    (
        "ExposeInvalidFormat",
        "FROM a\nEXPOSE 127.0.0.1:80:80 81-82\n",
        [(2, "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'")],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text", "expected"), CASES)
def test_a_rule_finds(rule, text, expected):
    assert only(rule, text) == expected


def test_every_rule_that_needs_no_image_has_a_case():
    covered = {rule for rule, _, expected in CASES if expected} | {"CopyIgnoredFile", "InvalidBaseImagePlatform"}
    assert covered == {rule.name for rule in RULES}


def test_every_rule_with_a_page_has_its_address():
    assert rules.JSON_ARGS_RECOMMENDED.url == "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"
    assert {rule.name for rule in RULES if not rule.url} == {"InvalidBaseImagePlatform"}
    assert {rule.name for rule in RULES if rule.experimental} == {"CopyIgnoredFile", "InvalidDefinitionDescription"}


def test_an_ordinary_dockerfile_has_nothing_to_find():
    text = (
        "# syntax=docker/dockerfile:1\nARG VERSION=3.20\nFROM --platform=$BUILDPLATFORM alpine:${VERSION} AS build\n"
        "ARG TARGETOS TARGETARCH\nWORKDIR /src\nCOPY . .\nRUN GOOS=$TARGETOS make\nFROM scratch\n"
        'COPY --from=build /src/x /x\nENTRYPOINT ["/x"]\n'
    )
    assert found(text) == []


# --- what is ignored --------------------------------------------------------------------------------------------------


def test_sources_that_are_ignored_are_named():
    text = "FROM a\nCOPY . x.md docs/a /\nADD y.md https://h/z.md /\nCOPY --from=b q.md <<EOF /\nEOF\n"
    assert only("CopyIgnoredFile", text, ignore=Patterns(["*.md", "docs"])) == [
        (2, 'Attempting to Copy file "x.md" that is excluded by .dockerignore'),
        (2, 'Attempting to Copy file "docs/a" that is excluded by .dockerignore'),
        (3, 'Attempting to Add file "y.md" that is excluded by .dockerignore'),
    ]


def test_of_ignored_sources_nothing_is_said_with_exceptions_and_of_the_root_only_when_all_is_ignored():
    assert only("CopyIgnoredFile", "FROM a\nCOPY x.md /\n", ignore=Patterns(["*", "!a"])) == []
    assert only("CopyIgnoredFile", "FROM a\nCOPY . /\n", ignore=Patterns(["*.md"])) == []
    assert only("CopyIgnoredFile", "FROM a\nCOPY . /\n", ignore=Patterns(["**"])) == [
        (2, 'Attempting to Copy file "." that is excluded by .dockerignore')
    ]
    assert only("CopyIgnoredFile", "FROM a\nCOPY x.md /\n") == []


# --- what is known of base images -------------------------------------------------------------------------------------


def test_what_base_images_set_is_defined():
    text = "FROM image\nWORKDIR /$HOME\nUSER $NOBODY\nCMD x\n"
    assert only("UndefinedVar", text) == [], "not known: it may be"
    known = {0: Base(env={"HOME": "/root"})}
    assert only("UndefinedVar", text, bases=known) == [(3, "Usage of undefined variable '$NOBODY'")]
    assert len(only("JSONArgsRecommended", text, bases=known)) == 1
    assert only("JSONArgsRecommended", text, bases={0: Base(shell=True)}) == []


def test_build_arguments_count():
    text = "ARG base=scratch\nFROM $base\nARG dir\nWORKDIR $dir\n"
    assert len(only("WorkdirRelativePath", text)) == 1
    assert only("WorkdirRelativePath", text, build_args={"dir": "/x"}) == []
    assert only("UndefinedVar", text + "USER $x\n") == [(5, "Usage of undefined variable '$x'")]
    assert only("UndefinedVar", text + "USER $x\n", build_args={"base": "image"}) == []


# --- which are wanted -------------------------------------------------------------------------------------------------

BAD = "FROM a as B\nMAINTAINER me\nCMD x\n"


def names(text: str, checks: Checks) -> set[str]:
    return {name for name, _, _ in found(text, checks=checks)}


def test_rules_are_skipped_and_experimental_ones_asked_for():
    everything = {"FromAsCasing", "StageNameCasing", "MaintainerDeprecated", "JSONArgsRecommended"}
    assert names(BAD, Checks()) == everything
    assert names(BAD, parse_checks("skip=FromAsCasing, StageNameCasing")) == everything - {
        "FromAsCasing",
        "StageNameCasing",
    }
    assert names(BAD, parse_checks("skip=all;error=true")) == set()
    described = "# x\n" + BAD
    assert "InvalidDefinitionDescription" not in names(described, Checks())
    assert "InvalidDefinitionDescription" in names(described, parse_checks("experimental=InvalidDefinitionDescription"))
    assert "InvalidDefinitionDescription" in names(described, parse_checks(" experimental = all "))


def test_findings_fail_a_build_that_wants_it():
    findings = lint(parse_dockerfile(BAD.encode()), checks=Checks())
    assert Checks().failure(findings) is None
    assert parse_checks("error=true").failure([]) is None
    failure = parse_checks("error=1").failure(findings)
    assert failure is not None
    assert failure.message == (
        "lint violation found for rules: FromAsCasing, JSONArgsRecommended, MaintainerDeprecated, StageNameCasing"
    )


def test_the_argument_goes_before_the_directive():
    dockerfile = parse_dockerfile(b"# check=skip=all\nFROM a\n")
    assert checks_of(dockerfile).skip_all
    assert checks_of(dockerfile, "error=true") == Checks(error=True, skip=frozenset(), experimental=frozenset())
    assert checks_of(parse_dockerfile(b"FROM a\n")) == Checks()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skip", 'invalid check option "skip"'),
        ("skip=a;nope=b", 'invalid check option "nope"'),
        ("error=maybe", 'failed to parse check option "error=maybe": it is true or false'),
    ],
)
def test_a_directive_that_makes_no_sense_is_refused_with_its_line(text, message):
    with pytest.raises(DockerfileError) as caught:
        checks_of(parse_dockerfile(f"# syntax=docker/dockerfile:1\n# check={text}\nFROM a\n".encode()))
    assert caught.value.message == message
    assert caught.value.location is not None
    assert caught.value.location.ranges[0].start == 2


# --- how it is told ---------------------------------------------------------------------------------------------------


def test_progress_shows_a_finding_in_one_line():
    (finding,) = lint(parse_dockerfile(b"FROM a\nMAINTAINER me\n"), checks=Checks())
    event = finding.event("sha256:1")
    assert event.short == (
        "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"
    )
    assert (event.vertex, event.rule, event.url) == ("sha256:1", finding.rule.name, finding.rule.url)
    assert event.detail == (finding.rule.description,)
    assert event.location == finding.location


def test_the_documents_say_what_where_and_with_which_result():
    data = b"FROM a\nCMD x \\\n y\nMAINTAINER m\n"
    documents = lint_result("sub/Dockerfile", data, lint(parse_dockerfile(data), checks=Checks()))
    told = json.loads(documents["result.json"])
    assert told["sources"] == [
        {"filename": "sub/Dockerfile", "language": "Dockerfile", "data": base64.b64encode(data).decode()}
    ]
    assert told["warnings"][0] == {
        "ruleName": "JSONArgsRecommended",
        "description": rules.JSON_ARGS_RECOMMENDED.description,
        "url": rules.JSON_ARGS_RECOMMENDED.url,
        "detail": "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
        "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 3}}]},
    }
    assert "error" not in told
    assert (documents["result.statuscode"], documents["version"]) == (b"1", b"1.0.0")
    assert (
        documents["result.txt"]
        .decode()
        .startswith(
            "\nWARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\n"
            "JSON arguments recommended for CMD to prevent unintended behavior related to OS signals\n"
            "Dockerfile:2\n--------------------\n   1 |     FROM a\n   2 | >>> CMD x \\\n   3 | >>>  y\n"
            "   4 |     MAINTAINER m\n--------------------\n\nWARNING: MaintainerDeprecated"
        )
    )


def test_the_documents_of_nothing_and_of_an_error():
    assert lint_result("Dockerfile", b"FROM a\n", [])["result.statuscode"] == b"0"
    assert lint_result("Dockerfile", b"FROM a\n", [])["result.txt"] == b""
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(b"FROM a\nRNU x\n")
    documents = lint_result("Dockerfile", b"FROM a\nRNU x\n", [], caught.value)
    assert json.loads(documents["result.json"])["error"] == {
        "message": "dockerfile parse error on line 2: unknown instruction: RNU (did you mean RUN?)",
        "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]},
    }
    assert documents["result.statuscode"] == b"1"
    assert b"\nERROR: dockerfile parse error on line 2" in documents["result.txt"]
    assert json.loads(lint_result("f", b"", [], DockerfileError("x"))["result.json"])["error"]["location"] == {}
