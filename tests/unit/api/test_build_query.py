"""`POST /build`: what its query comes to, and what is refused before anything is read."""

import base64
import json
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from aiohttp.test_utils import make_mocked_request

from wherry.api.build_query import BuildRequest, host_of, read, registry_credentials
from wherry.api.call import DEFAULT_VERSION, Call
from wherry.api.services import Services
from wherry.builder.graph import Limits, NetworkMode, ResolveMode, Ulimit
from wherry.builder.options import CacheTransfer
from wherry.errors import InvalidParameter, NotSupported


def asked(headers: dict[str, str] | None = None, **query: Any) -> BuildRequest:
    request = make_mocked_request("POST", "/build?" + urlencode(query, doseq=True), headers=headers or {})
    return read(Call(request, cast(Services, None), version=DEFAULT_VERSION, path={}, headers={}))


def test_nothing_asked_for_is_a_build_of_the_dockerfile_with_images_that_are_held() -> None:
    request = asked()
    assert request.options.filename == "Dockerfile"
    assert request.options.resolve is ResolveMode.LOCAL
    assert request.options.limits == Limits()
    assert not request.quiet
    assert not request.names
    assert request.export.type == "image"
    assert "name" not in request.export.attributes


def test_every_parameter_arrives() -> None:
    request = asked(
        dockerfile="d/My.df",
        t=["one", "reg.test:5000/two:3", "one:latest", ""],
        extrahosts=["a:1.2.3.4", "b=::1", "c:host-gateway"],
        remote="https://git.test/x.git",
        q="1",
        nocache="true",
        cachefrom='["one","two"]',
        pull="1",
        rm="0",
        forcerm="1",
        memory="33554432",
        memswap="-1",
        cpushares="7",
        cpusetcpus="0-1",
        cpusetmems="0",
        cpuperiod="1000",
        cpuquota="-1",
        buildargs='{"who":"you","none":null}',
        shmsize="1048576",
        squash="1",
        labels='{"k":"v"}',
        networkmode="host",
        platform="linux/arm64",
        target="app",
        ulimits='[{"Name":"nofile","Soft":1,"Hard":2}]',
        cgroupparent="/mine",
        buildid="b1",
        outputs='[{"Type":"moby","Attrs":{"type":"image","compression":"zstd"}}]',
        version="1",
    )
    options = request.options
    assert options.filename == "d/My.df"
    assert [name.familiar for name in request.names] == ["one:latest", "reg.test:5000/two:3"]
    assert request.export.attributes == {
        "compression": "zstd",
        "name": "docker.io/library/one:latest,reg.test:5000/two:3",
    }
    assert options.extra_hosts == [("a", "1.2.3.4"), ("b", "::1"), ("c", "host-gateway")]
    assert request.remote == "https://git.test/x.git"
    assert request.quiet
    assert options.no_cache
    assert options.cache_imports == [
        CacheTransfer(type="registry", attributes={"ref": "one"}),
        CacheTransfer(type="registry", attributes={"ref": "two"}),
    ]
    assert options.resolve is ResolveMode.PULL
    assert request.force_remove
    assert options.limits == Limits(
        memory=33554432,
        memory_swap=-1,
        cpu_shares=7,
        cpu_period=1000,
        cpu_quota=-1,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        ulimits=(Ulimit("nofile", 1, 2),),
        cgroup_parent="/mine",
        shm_size=1048576,
    )
    assert options.build_args == {"who": "you"}
    assert options.squash
    assert options.labels == {"k": "v"}
    assert options.network is NetworkMode.HOST
    assert "network.host" in options.entitlements
    assert [str(each) for each in options.platforms] == ["linux/arm64"]
    assert options.target == "app"
    assert request.build_id == "b1"
    assert request.attributes == {
        "filename": "d/My.df",
        "context": "https://git.test/x.git",
        "target": "app",
        "platform": "linux/arm64",
        "image-resolve-mode": "pull",
        "force-network-mode": "host",
        "no-cache": "",
        "build-arg:who": "you",
        "label:k": "v",
        "add-hosts": "a=1.2.3.4,b=::1,c=host-gateway",
    }


def test_build_arguments_that_mean_something_to_the_builder_do_here_too() -> None:
    assert asked(buildargs='{"SOURCE_DATE_EPOCH":"7"}').options.epoch == 7


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"buildargs": "xx"}, "error reading build args: "),
        ({"labels": "[1]"}, "error reading labels: "),
        ({"ulimits": "xx"}, "error reading ulimit settings: "),
        ({"cachefrom": "xx"}, "error reading cache sources: "),
        ({"t": "UPPER"}, "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ({"t": "x@sha256:" + "a" * 64}, "refusing to create a tag with a digest reference"),
        ({"platform": "a/b/c/d"}, '"a/b/c/d": invalid platform specifier'),
        ({"buildargs": '{"SOURCE_DATE_EPOCH":"x"}'}, "invalid build-arg:SOURCE_DATE_EPOCH"),
        ({"platform": "linux/amd64,linux/arm64"}, "one platform at a time"),
        ({"version": "3"}, 'invalid version "3"'),
        ({"securityopt": '["x"]'}, "does not support setting security options on build"),
        ({"shmsize": "abc"}, 'parsing "abc": invalid syntax'),
        ({"shmsize": "-1"}, "shmsize cannot be negative: -1"),
        ({"extrahosts": "a"}, 'bad format for add-host: "a"'),
        ({"extrahosts": "a:b"}, 'invalid IP address in add-host: "b"'),
        ({"outputs": '[{"Type":"moby"},{"Type":"moby"}]'}, "one output, an image"),
    ],
)
def test_what_makes_no_sense_is_refused(query: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        asked(**query)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"version": "2"}, "buildx"),
        ({"networkmode": "container:x"}, 'network mode "container:x" is not supported by builds'),
        ({"outputs": '[{"Type":"local"}]'}, "needs a client that can receive files"),
    ],
)
def test_what_cannot_be_done_says_what_can(query: dict[str, str], words: str) -> None:
    with pytest.raises(NotSupported) as caught:
        asked(**query)
    assert words in caught.value.message


def encoded(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


def test_credentials_are_known_by_their_host() -> None:
    found = asked(
        headers={
            "X-Registry-Config": encoded(
                {
                    "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
                    "reg.test:5000": {"username": "me", "password": "secret", "identitytoken": None},
                }
            )
        }
    ).credentials
    assert {host: auth.username for host, auth in found.items()} == {"docker.io": "hub", "reg.test:5000": "me"}


@pytest.mark.parametrize(
    "header", [None, "", "garbage!!", encoded([1]), encoded({"a": 1}), encoded(None), "x" * (2 << 20)]
)
def test_credentials_that_cannot_be_read_are_none(header: str | None) -> None:
    assert registry_credentials(header) == {}


def test_docker_hub_has_one_name() -> None:
    assert {host_of(text) for text in ("docker.io", "https://index.docker.io/v1/", "registry-1.docker.io")} == {
        "docker.io"
    }


def test_a_network_that_somebody_made_is_named() -> None:
    options = asked(networkmode="front").options
    assert (options.network, options.on) == (NetworkMode.SANDBOX, "front")
    assert asked(networkmode="bridge").options.on == ""
