"""The command line of `build`: what is asked for, and what the engine may ask back."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wherry.cli.build_flags import BUILD_FLAGS
from wherry.cli.build_request import Plan, is_archive, plan_build
from wherry.cli.command import CLI
from wherry.cli.console import Failure
from wherry.cli.flags import parse
from wherry.cli.main import GLOBAL_FLAGS
from wherry.client.jsontext import loads

Planned = Callable[..., Plan]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "context"
    root.mkdir()
    (root / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def planned(tmp_path: Path, context: Path) -> Iterator[Planned]:
    saved = os.dup(0)

    def plan(*arguments: str, environ: dict[str, str] | None = None, stdin: bytes = b"", config: str = "") -> Plan:
        (tmp_path / "config.json").write_text(config or "{}")
        (tmp_path / "stdin").write_bytes(stdin)
        fd = os.open(tmp_path / "stdin", os.O_RDONLY)
        os.dup2(fd, 0)
        os.close(fd)
        globals_, _ = parse(["--config", str(tmp_path)], GLOBAL_FLAGS)
        cli = CLI(globals_, environ or {})
        flags, rest = parse([*arguments], BUILD_FLAGS)
        return plan_build(cli, flags, (rest or ["context"])[0])

    yield plan
    os.dup2(saved, 0)
    os.close(saved)


def test_a_directory_with_its_dockerfile(planned: Planned, context: Path) -> None:
    plan = planned("context")
    assert plan.directories == {"context": str(context), "dockerfile": str(context)}
    assert plan.attributes["filename"] == "Dockerfile"
    assert plan.attributes["image-resolve-mode"] == "local"
    assert plan.attributes["sharedkey:localdir:context"] == str(context)
    assert [(each.type, each.attributes, each.path) for each in plan.outputs] == [("image", {}, "")]
    head = plan.head()
    assert (head["type"], head["node"]) == ("build", os.uname().nodename)
    assert "squash" not in head


def test_another_dockerfile_is_in_a_directory_of_its_own(planned: Planned, context: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/My.df").write_text("FROM scratch\n")
    plan = planned("-f", "other/My.df", "context")
    assert plan.directories == {"context": str(context), "dockerfile": str(tmp_path / "other")}
    assert plan.attributes["filename"] == "My.df"


def test_lower_case_is_a_name_for_it_too(planned: Planned, context: Path) -> None:
    (context / "Dockerfile").rename(context / "dockerfile")
    assert planned("context").attributes["filename"] == "dockerfile"


def test_a_dockerfile_from_standard_input(planned: Planned, context: Path) -> None:
    plan = planned("-f", "-", "context", stdin=b"FROM x\n")
    assert plan.files == {"dockerfile": {"Dockerfile": b"FROM x\n"}}
    assert plan.directories == {"context": str(context)}


def test_a_dockerfile_alone_has_an_empty_context(planned: Planned) -> None:
    plan = planned("-", stdin=b"FROM x\n" * 200)
    assert plan.files == {"dockerfile": {"Dockerfile": b"FROM x\n" * 200}, "context": {}}


@pytest.mark.parametrize("head", [b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"a" * 257 + b"ustar"])
def test_an_archive_on_standard_input_is_the_context(planned: Planned, head: bytes) -> None:
    assert is_archive(head)
    plan = planned("-f", "d/My.df", "-", stdin=head)
    assert plan.archive == head
    assert plan.attributes["filename"] == "d/My.df"
    assert plan.attributes["context"].startswith("http://buildkit-session/")


@pytest.mark.parametrize(
    "url", ["https://git.test/x.git#main:d", "git@git.test:x", "github.com/x/y", "http://x.test/c.tar"]
)
def test_a_url_is_fetched_by_the_engine(planned: Planned, url: str) -> None:
    plan = planned("-f", "d/My.df", url)
    assert plan.attributes["context"] == url
    assert plan.attributes["filename"] == "d/My.df"
    assert not plan.directories


def test_flags_become_attributes(planned: Planned) -> None:
    plan = planned(
        "--build-arg", "A=1", "--build-arg", "FROM_ENV", "--build-arg", "UNSET", "--label", "k=v=w", "--target", "app",
        "--platform", "linux/amd64,linux/arm64", "--pull", "--no-cache", "--add-host", "a:1.2.3.4", "--add-host",
        "b=::1", "--network", "host", "--shm-size", "1m", "-m", "64m", "--memory-swap", "-1", "-c", "3",
        "--cpu-period", "10", "--cpu-quota", "20", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--cgroup-parent", "/p",
        "--ulimit", "nofile=1:2", "--allow", "device", "--provenance", "mode=max", "--sbom", "true", "--squash",
        "--verify", "--on-error", "shell",
        environ={"FROM_ENV": "e", "SOURCE_DATE_EPOCH": "7"},
    )  # fmt: skip
    attributes = plan.attributes
    expected = {
        "build-arg:A": "1", "build-arg:FROM_ENV": "e", "build-arg:SOURCE_DATE_EPOCH": "7", "label:k": "v=w",
        "target": "app", "platform": "linux/amd64,linux/arm64", "image-resolve-mode": "pull", "no-cache": "",
        "add-hosts": "a=1.2.3.4,b=::1", "force-network-mode": "host", "shm-size": "1048576", "memory": "67108864",
        "memswap": "-1", "cpushares": "3", "cpuperiod": "10", "cpuquota": "20", "cpusetcpus": "0", "cpusetmems": "0",
        "cgroup-parent": "/p", "ulimit": "nofile=1:2", "attest:provenance": "mode=max", "attest:sbom": "",
    }  # fmt: skip
    assert {name: attributes.get(name) for name in expected} == expected
    assert "build-arg:UNSET" not in attributes
    assert set(plan.entitlements) == {"device", "network.host"}
    assert plan.head()["squash"] is plan.head()["verify"] is plan.head()["shell"] is True


def test_the_engine_understands_every_attribute(planned: Planned) -> None:
    from wherry.builder.attributes import from_attributes

    plan = planned(
        "--platform", "linux/amd64", "--add-host", "a:1.2.3.4", "--ulimit", "nofile=1:2", "--no-cache-filter", "a,b",
        "--cache-from", "reg.test/x:y", "--attest", "type=sbom,generator=x", "--check", "-m", "1g",
    )  # fmt: skip
    options = from_attributes(plan.attributes, entitlements=plan.entitlements)
    assert options.extra_hosts == (("a", "1.2.3.4"),)
    assert list(options.no_cache_stages) == ["a", "b"]
    assert options.cache_imports[0].attributes == {"ref": "reg.test/x:y"}
    assert options.sbom == {"generator": "x"}
    assert options.call == "frontend.lint"
    assert options.limits.memory == 1 << 30


def test_proxies_of_the_configuration_are_build_arguments(planned: Planned) -> None:
    config = '{"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"x"}}}'
    attributes = planned("--build-arg", "no_proxy=mine", config=config).attributes
    assert attributes["build-arg:HTTP_PROXY"] == attributes["build-arg:http_proxy"] == "http://p:1"
    assert attributes["build-arg:no_proxy"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "type_", "attributes", "path"),
    [
        (["-t", "a", "-t", "reg.test/b:2"], "image", {"name": "docker.io/library/a:latest,reg.test/b:2"}, ""),
        (["-t", "a", "--push"], "image", {"name": "docker.io/library/a:latest", "push": "true"}, ""),
        (["-o", "out"], "local", {}, "out"),
        (["-o", "type=local,dest=out"], "local", {}, "out"),
        (["-o", "type=tar,dest=out.tar"], "tar", {}, "out.tar"),
        (["-o", "-"], "tar", {}, "-"),
        (["-t", "a", "-o", "type=oci,dest=x"], "oci", {"name": "docker.io/library/a:latest"}, "x"),
        (["-o", "type=registry,name=r.test/x"], "image", {"name": "r.test/x", "push": "true"}, ""),
        (["-o", "type=docker"], "image", {}, ""),
        (["-o", 'type=image,name=x,"annotation.a=b,c"'], "image", {"name": "x", "annotation.a": "b,c"}, ""),
        (
            ["--annotation", "a=b", "--annotation", "index:c=d"],
            "image",
            {"annotation.a": "b", "annotation-index.c": "d"},
            "",
        ),
    ],
)
def test_where_the_result_goes(
    planned: Planned, arguments: list[str], type_: str, attributes: dict[str, str], path: str
) -> None:
    (output,) = planned(*arguments).outputs
    assert (output.type, output.attributes, output.path) == (type_, attributes, path)


def test_several_outputs_and_none(planned: Planned) -> None:
    assert [each.type for each in planned("-o", "out", "--load").outputs] == ["local", "image"]
    assert planned("-o", "type=cacheonly").outputs == []
    assert planned("--check").outputs == []
    plan = planned("-o", "type=oci,tar=false,dest=layout")
    assert plan.stores == {"export": os.path.realpath("layout")}


def test_secrets_are_files_or_variables(planned: Planned, tmp_path: Path) -> None:
    for name in ("file", "b"):
        (tmp_path / name).write_text("s")
    plan = planned(
        "--secret", "id=a,src=file", "--secret", "id=b", "--secret", "id=c", "--secret", "id=d,env=X",
        "--secret", "type=env,id=e",
        environ={"c": "value"},
    )  # fmt: skip
    found = {name: (secret.path, secret.variable) for name, secret in plan.secrets.items()}
    assert found == {"a": ("file", ""), "b": ("b", ""), "c": ("", "c"), "d": ("", "X"), "e": ("", "e")}


def test_agents_are_sockets_or_made_of_keys(planned: Planned, tmp_path: Path) -> None:
    for key in ("a", "b"):
        (tmp_path / key).write_text("a key")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind("agent")
        plan = planned("--ssh", "default", "--ssh", "other=agent", "--ssh", "k=a,b", environ={"SSH_AUTH_SOCK": "agent"})
        with pytest.raises(Failure, match="only single socket allowed"):
            planned("--ssh", "k=agent,a")
    assert plan.agents == {"default": "agent", "other": "agent"}
    assert plan.keys == {"k": ["a", "b"]}


def test_named_contexts(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    plan = planned(
        "--build-context", "a=dir", "--build-context", "b=docker-image://x:1", "--build-context", "context=dir"
    )
    assert plan.attributes["context:a"] == "local:a"
    assert plan.attributes["context:b"] == "docker-image://x:1"
    assert plan.attributes["context:context"] == "local:_context"
    assert plan.directories["a"] == plan.directories["_context"] == str(tmp_path / "dir")


def test_caches(planned: Planned, tmp_path: Path) -> None:
    from wherry.cli.build_layouts import add_to_index

    add_to_index(str(tmp_path / "cache"), {"digest": "sha256:" + "a" * 64, "size": 1}, "latest")
    plan = planned(
        "--cache-from", "r.test/x", "--cache-from", "type=local,src=cache", "--cache-from", "type=local,src=nothing",
        "--cache-to", "type=local,dest=new,mode=max", "--cache-to", "type=inline",
    )  # fmt: skip
    assert loads(plan.attributes["cache-imports"]) == [
        {"Type": "registry", "Attrs": {"ref": "r.test/x"}},
        {"Type": "local", "Attrs": {"src": "cache", "digest": "sha256:" + "a" * 64}},
    ]
    assert plan.cache_exports == [
        {"type": "local", "attributes": {"dest": "new", "mode": "max"}},
        {"type": "inline", "attributes": {}},
    ]
    assert set(plan.stores) == {"local:cache", "local:new"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], 'unable to prepare context: path "nowhere" not found'),
        (["-f", "nope", "context"], "failed to read dockerfile: open nope: no such file or directory"),
        (["-f", "-", "-"], "can't use stdin for both build context and dockerfile"),
        (["-f", "x", "-"], "ambiguous Dockerfile source"),
        (["-t", "UPPER"], "must be lowercase"),
        (["--network", "mine"], 'network mode "mine" not supported'),
        (["--no-cache", "--no-cache-filter", "a"], "cannot currently be used together"),
        (["--secret", "src=x"], "it has no id"),
        (["--secret", "id=x,src=nope"], "failed to stat nope"),
        (["--secret", "id=x,what=1"], "unexpected key 'what'"),
        (["--ssh", "default"], "make sure SSH_AUTH_SOCK is set"),
        (["--ssh", "default=nope"], "failed to open nope: no such file or directory"),
        (["--build-context", "x"], "expected key=value"),
        (["--build-context", "x=nope"], 'path "nope" not found'),
        (["--build-context", "x=oci-layout://nope"], "failed to get build context x"),
        (["-o", "dest=x"], "type is required"),
        (["-o", "type=nope"], "unknown type of output: nope"),
        (["-o", "type=local"], "dest is required for local output"),
        (["-o", "type=tar,dest=context"], "is a directory"),
        (["-o", "-", "-o", "type=oci"], "multiple outputs to stdout"),
        (["--push"], "tag is needed when pushing to registry"),
        (["--attest", "generator=x"], "attestation type not specified"),
        (["--annotation", "x"], "expected key=value"),
        (["--cache-to", "type=local"], "local cache exporter requires dest"),
    ],
)
def test_what_makes_no_sense_is_refused(planned: Planned, arguments: list[str], words: str) -> None:
    with pytest.raises(Failure) as caught:
        planned(*arguments, stdin=b"x")
    assert words in caught.value.message
