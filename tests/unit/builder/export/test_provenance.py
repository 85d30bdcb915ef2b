"""What is said of how a result was made."""

import base64
import json

import msgspec
import pytest

from wherry.builder.export.provenance import SLSA_02, SLSA_1, Facts, wish, with_provenance
from wherry.builder.export.work import Variant, Work
from wherry.builder.graph import Exec, ExecMount, ImageSource, Location, MountKind, NetworkMode, Output, Range, Vertex
from wherry.builder.records.record import Input, InputKind
from wherry.builder.trees import SCRATCH
from wherry.errors import InvalidParameter
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import parse_platform

AMD64 = parse_platform("linux/amd64")
COMMIT = "c0ffee" * 6 + "abcd"
BASE = Vertex(op=ImageSource(reference="docker.io/library/alpine:3.20"), name="[1/2] FROM alpine")
RUN = Vertex(
    op=Exec(
        args=("/bin/sh", "-c", "make"),
        mounts=(
            ExecMount(target="/", input=0, output=0),
            ExecMount(target="/run/secrets/t", kind=MountKind.SECRET, secret_id="token"),
            ExecMount(target="/run/secrets/o", kind=MountKind.SECRET, secret_id="other", optional=True),
        ),
    ),
    inputs=(Output(BASE),),
    name="[2/2] RUN make",
    location=Location("Dockerfile", b"FROM alpine\nRUN make\n", (Range(2, 2),)),
)
FACTS = Facts(
    ref="theref",
    attributes={
        "filename": "Dockerfile",
        "build-arg:VERSION": "1",
        "label:a": "b",
        "target": "app",
        "context": "https://user:secret@example.com/x.git#main",
        "vcs:source": "https://user:secret@example.com/x.git",
        "local-sessionid:context": "passing",
        "attest:provenance": "mode=max",
    },
    host=AMD64,
    started=1_700_000_000_000_000_000,
    finished=1_700_000_001_000_000_000,
    context="https://user:secret@example.com/x.git#main",
    inputs=[
        Input(
            kind=InputKind.IMAGE,
            name="docker.io/library/alpine:3.20",
            digest=f"sha256:{'a' * 64}",
            platform="linux/amd64",
        ),
        Input(kind=InputKind.GIT, name="https://user:secret@example.com/x.git", digest=f"git:{COMMIT}"),
        Input(kind=InputKind.HTTP, name="https://example.com/f", digest=f"sha256:{'b' * 64}"),
        Input(kind=InputKind.LOCAL, name="context"),
    ],
    dockerfile=b"FROM alpine\nRUN make\n",
    outputs={"linux/amd64": Output(RUN)},
)


def said(attributes, facts=FACTS):
    variant = Variant(platform=AMD64, tree=SCRATCH, config=ContainerConfig())
    work = Work(
        deps=None,
        lease=None,
        client=None,
        log=None,
        variants=[variant],
        bring=None,
        epoch=0,  # type: ignore[arg-type]
    )
    (made,) = with_provenance(work, facts, attributes).variants
    (statement,) = made.statements
    return statement, json.loads(msgspec.json.encode(statement.predicate))


def test_materials_are_named_by_exactly_what_they_were():
    statement, predicate = said({"mode": "min"})
    assert statement.predicate_type == SLSA_02
    assert predicate["materials"] == [
        {"uri": "https://example.com/f", "digest": {"sha256": "b" * 64}},
        {"uri": "https://xxxxx:xxxxx@example.com/x.git", "digest": {"sha1": COMMIT}},
        {"uri": "pkg:docker/alpine@3.20?platform=linux%2Famd64", "digest": {"sha256": "a" * 64}},
    ]
    assert predicate["invocation"]["configSource"] == {
        "uri": "https://xxxxx:xxxxx@example.com/x.git#main",
        "digest": {"sha1": COMMIT},
        "entryPoint": "Dockerfile",
    }
    assert predicate["invocation"]["environment"] == {"platform": "linux/amd64"}


def test_the_least_says_nothing_that_differs_the_next_time():
    from dataclasses import replace

    _, predicate = said({"mode": "min"})
    again = replace(FACTS, ref="another", started=5, finished=6)
    assert said({"mode": "min"}, again)[1] == predicate
    text = json.dumps(predicate)
    for word in ("secret@", "VERSION", "label:a", "theref", "passing", "token"):
        assert word not in text
    assert predicate["metadata"]["completeness"] == {"parameters": False, "environment": True, "materials": False}


def test_the_most_says_how_and_when():
    _, predicate = said({})
    parameters = predicate["invocation"]["parameters"]
    assert parameters["args"]["build-arg:VERSION"] == "1"
    assert parameters["secrets"] == [{"id": "other", "optional": True}, {"id": "token"}]
    assert parameters["locals"] == [{"name": "context"}]
    metadata = predicate["metadata"]
    assert metadata["buildInvocationID"] == "theref"
    assert metadata["buildStartedOn"] == "2023-11-14T22:13:20Z"
    own = metadata["https://mobyproject.org/buildkit@v1#metadata"]
    assert base64.b64decode(own["source"]["infos"][0]["data"]) == FACTS.dockerfile
    assert own["source"]["locations"]["step1"]["locations"][0]["ranges"][0]["start"] == {"line": 2}
    assert own["vcs"] == {"source": "https://xxxxx:xxxxx@example.com/x.git"}
    steps = predicate["buildConfig"]["llbDefinition"]
    assert [step["name"] for step in steps] == ["[1/2] FROM alpine", "[2/2] RUN make"]
    assert steps[1]["inputs"] == ["step0:0"]
    assert "secret@" not in json.dumps(predicate)


def test_version_1_has_the_same_in_other_places():
    statement, predicate = said({"version": "v1", "mode": "max", "builder-id": "https://ci.example/1"})
    assert statement.predicate_type == SLSA_1
    assert predicate["runDetails"]["builder"] == {"id": "https://ci.example/1"}
    assert predicate["runDetails"]["metadata"]["invocationId"] == "theref"
    definition = predicate["buildDefinition"]
    assert definition["resolvedDependencies"] == said({})[1]["materials"]
    assert definition["externalParameters"]["configSource"]["path"] == "Dockerfile"
    assert definition["internalParameters"]["builderPlatform"] == "linux/amd64"


def test_a_build_without_network_and_local_files_has_complete_materials():
    from dataclasses import replace

    alone = replace(RUN, op=replace(RUN.op, network=NetworkMode.NONE))
    facts = replace(FACTS, inputs=FACTS.inputs[:1], outputs={"linux/amd64": Output(alone)})
    assert said({}, facts)[1]["metadata"]["completeness"]["materials"] is True


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"mode": "some"}, "invalid mode 'some'"),
        ({"version": "v3"}, "invalid version 'v3'"),
        ({"inline-only": "x"}, "inline-only"),
        ({"filename": "../x"}, "invalid filename"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(attributes, words):
    with pytest.raises(InvalidParameter, match=words):
        wish(attributes)
