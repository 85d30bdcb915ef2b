"""BuildKit's attributes become options; a bad one is named."""

import base64
import json

import pytest

from wherry.builder.attributes import from_attributes, parse_ulimit
from wherry.builder.graph import LocalSource, NetworkMode, Output, ResolveMode, Ulimit, Vertex
from wherry.builder.options import CacheTransfer, Call, Options
from wherry.errors import InvalidParameter, NotSupported
from wherry.spec.image import Platform


def test_no_attributes_are_the_defaults():
    assert from_attributes({}) == Options()


def test_what_buildx_sends_for_a_plain_build():
    options = from_attributes(
        {
            "filename": "docker/Dockerfile.dev",
            "target": "runtime",
            "image-resolve-mode": "local",
            "build-arg:VERSION": "1.2",
            "build-arg:EMPTY": "",
            "label:org.example": "a=b",
            "platform": "linux/amd64,linux/arm64/v8,linux/amd64",
            "sharedkey:localdir:context": "project",
            "local-sessionid:context": "s1",
            "dockerfilekey": "dockerfile",
        },
        entitlements=["network.host"],
    )
    assert options.filename == "docker/Dockerfile.dev"
    assert options.target == "runtime"
    assert options.resolve is ResolveMode.LOCAL
    assert options.build_args == {"VERSION": "1.2", "EMPTY": ""}
    assert options.labels == {"org.example": "a=b"}
    assert [str(platform) for platform in options.platforms] == ["linux/amd64", "linux/arm64"]
    assert options.multi_platform
    assert options.shared_keys == {"context": "project"}
    assert options.sessions == {"context": "s1"}
    assert options.local_dockerfile
    assert options.entitlements == {"network.host"}


def test_limits_hosts_and_network_of_steps():
    options = from_attributes(
        {
            "add-hosts": "Example=10.0.0.1,six=fe80::1",
            "force-network-mode": "host",
            "shm-size": "134217728",
            "ulimit": "nofile=1024:2048,core=-1",
            "cgroup-parent": "/builds",
            "memory": "1000",
            "memswap": "-1",
            "cpushares": "2",
            "cpuperiod": "3",
            "cpuquota": "-1",
            "cpusetcpus": "0-1",
            "cpusetmems": "0",
            "hostname": "one",
        }
    )
    assert options.extra_hosts == (("example", "10.0.0.1"), ("six", "fe80::1"))
    assert options.network is NetworkMode.HOST
    assert options.hostname == "one"
    limits = options.limits
    assert (limits.shm_size, limits.memory, limits.memory_swap, limits.cpu_quota) == (134217728, 1000, -1, -1)
    assert (limits.cpu_shares, limits.cpu_period, limits.cpuset_cpus, limits.cpuset_mems) == (2, 3, "0-1", "0")
    assert limits.ulimits == (Ulimit("nofile", 1024, 2048), Ulimit("core", -1, -1))
    assert limits.cgroup_parent == "/builds"


def test_no_cache_is_for_all_stages_or_for_those_named():
    assert from_attributes({"no-cache": ""}).no_cache
    some = from_attributes({"no-cache": "a,b"})
    assert not some.no_cache
    assert some.no_cache_stages == ("a", "b")
    assert not from_attributes({}).no_cache


def test_build_arguments_with_a_meaning_have_it_and_stay_arguments():
    options = from_attributes(
        {
            "build-arg:SOURCE_DATE_EPOCH": "1700000000",
            "build-arg:BUILDKIT_SANDBOX_HOSTNAME": "box",
            "build-arg:BUILDKIT_MULTI_PLATFORM": "true",
            "hostname": "other",
        }
    )
    assert options.epoch == 1700000000
    assert options.hostname == "box"
    assert options.multi_platform
    assert options.build_args["SOURCE_DATE_EPOCH"] == "1700000000"


def test_named_contexts_keep_their_value_and_inputs_bring_tree_and_config():
    tree = Output(Vertex(op=LocalSource(name="x")))
    config = b'{"os":"linux"}'
    metadata = json.dumps({"containerimage.config": base64.b64encode(config).decode(), "other": None})
    options = from_attributes(
        {
            "context:base": "docker-image://alpine",
            "context:app": "input:0-app",
            "input-metadata:0-app": metadata,
            "context:bare": "input:0-app2",
            "contextkey": "main",
            "main": "https://example.org/x.git",
            "contextsubdir": "sub",
        },
        inputs={"0-app": tree, "0-app2": tree},
    )
    assert options.contexts["base"].value == "docker-image://alpine"
    assert options.contexts["app"].output is tree
    assert options.contexts["app"].config == config
    assert options.contexts["bare"].config == b""
    assert options.inputs == {"0-app": tree, "0-app2": tree}
    assert (options.context, options.context_subdirectory) == ("https://example.org/x.git", "sub")


def test_cache_imports_of_both_kinds():
    options = from_attributes(
        {
            "cache-imports": '[{"Type":"local","Attrs":{"src":"d"}},{"Type":"registry","Attrs":null}]',
            "cache-from": "a/b,c",
        }
    )
    assert options.cache_imports == (
        CacheTransfer(type="local", attributes={"src": "d"}),
        CacheTransfer(type="registry"),
        CacheTransfer(type="registry", attributes={"ref": "a/b"}),
        CacheTransfer(type="registry", attributes={"ref": "c"}),
    )


def test_attestations_are_wanted_or_switched_off():
    options = from_attributes({"attest:provenance": "mode=max,inline-only=true", "attest:sbom": "disabled=true"})
    assert options.provenance == {"mode": "max", "inline-only": "true"}
    assert options.sbom is None


def test_an_attribute_value_may_hold_commas_in_quotes():
    assert from_attributes({"attest:sbom": '"generator=a,b",x=1'}).sbom == {"generator": "a,b", "x": "1"}


def test_requests_for_something_else_than_a_build():
    assert from_attributes({"requestid": "frontend.lint"}).call is Call.LINT
    with pytest.raises(NotSupported, match=r"unsupported request frontend\.cook"):
        from_attributes({"requestid": "frontend.cook"})


def test_dockers_own_frontend_is_built_in_whatever_its_version():
    attrs = {"source": "docker/dockerfile:1.7-labs", "cmdline": "docker/dockerfile:1.7-labs"}
    assert from_attributes(attrs | {"build-arg:BUILDKIT_SYNTAX": "docker.io/docker/dockerfile-upstream:master"})


@pytest.mark.parametrize("name", ["source", "cmdline", "build-arg:BUILDKIT_SYNTAX"])
def test_another_frontend_is_refused_by_name(name):
    with pytest.raises(InvalidParameter, match="frontend example/own:1 is not supported"):
        from_attributes({name: "example/own:1"})


def test_known_capabilities_of_frontends_are_accepted_and_others_refused():
    from_attributes({"frontend.caps": "moby.buildkit.frontend.contexts+forward,moby.buildkit.frontend.inputs"})
    with pytest.raises(NotSupported, match=r"unsupported frontend capability moby\.other"):
        from_attributes({"frontend.caps": "moby.other+forward"})


@pytest.mark.parametrize(
    ("attrs", "words"),
    [
        ({"platform": "linux/amd64,/"}, "failed to parse target platform /"),
        ({"image-resolve-mode": "never"}, "invalid image-resolve-mode 'never'"),
        ({"force-network-mode": "bridge"}, "invalid force-network-mode 'bridge'"),
        ({"add-hosts": "a"}, "invalid add-hosts 'a': invalid key-value pair 'a'"),
        ({"add-hosts": "a=b"}, "failed to parse additional hosts: failed to parse IP b"),
        ({"shm-size": "64m"}, "invalid shm-size '64m': want a whole number"),
        ({"shm-size": "-1"}, "invalid shm-size '-1': out of range"),
        ({"memory": str(1 << 63)}, "invalid memory .*: out of range"),
        ({"multi-platform": "perhaps"}, "invalid boolean value for multi-platform: perhaps"),
        ({"platform": "linux/amd64,linux/arm64", "multi-platform": "false"}, "returning multiple target platforms"),
        ({"context:a": "docker"}, "invalid context specifier docker for a"),
        ({"context:a": "input:x"}, "invalid input x for a"),
        ({"cache-imports": "[{"}, "invalid cache-imports"),
        ({"build-arg:SOURCE_DATE_EPOCH": "today"}, "invalid build-arg:SOURCE_DATE_EPOCH 'today'"),
        ({"attest:sbom": "x"}, "invalid attest:sbom 'x'"),
        ({"attest:sbom": '"x'}, "not a list of comma separated values"),
        ({"ulimit": "nofile=1:2:3"}, "too many limit values"),
    ],
)
def test_a_bad_value_is_named(attrs, words):
    with pytest.raises(InvalidParameter, match=words):
        from_attributes(attrs)


def test_a_bad_input_metadata_is_named():
    tree = Output(Vertex(op=LocalSource(name="x")))
    with pytest.raises(InvalidParameter, match="failed to parse input metadata of k"):
        from_attributes({"context:a": "input:k", "input-metadata:k": "{"}, inputs={"k": tree})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nofile", "invalid ulimit argument: nofile"),
        ("nofile=", "invalid ulimit argument: nofile="),
        ("files=1", "invalid ulimit type: files"),
        ("nofile=a", "invalid ulimit 'a'"),
        ("nofile=3:2", "soft limit must be less than or equal to hard limit: 3 > 2"),
        ("nofile=-1:2", "soft limit must be less than or equal to hard limit: -1 > 2"),
    ],
)
def test_a_bad_ulimit_is_refused_in_dockers_words(text, words):
    with pytest.raises(InvalidParameter, match=words):
        parse_ulimit(text)


def test_a_single_ulimit_value_is_soft_and_hard():
    assert parse_ulimit("nproc=5") == Ulimit("nproc", 5, 5)
    assert parse_ulimit("nproc=5:-1") == Ulimit("nproc", 5, -1)


def test_one_platform_is_no_index_unless_asked():
    options = from_attributes({"platform": "linux/arm64"})
    assert options.platforms == (Platform(os="linux", architecture="arm64"),)
    assert not options.multi_platform


def test_labels_have_the_same_order_however_the_client_sends_them():
    attrs = {"label:b": "2", "label:a": "1", "label:c": "3"}
    for names in (sorted(attrs), sorted(attrs, reverse=True)):
        found = from_attributes({name: attrs[name] for name in names}).labels
        assert list(found) == ["a", "b", "c"]
