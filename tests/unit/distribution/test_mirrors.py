"""Mirrors of any registry: asked first, passed over when they lack something, lie or are down; upstream last."""

from collections.abc import AsyncIterator

import pytest

from imagekit.making import digest, make
from imagekit.registry import FakeRegistry, serve
from wherry.distribution.config import HostConfig, RegistryConfig, check, endpoints
from wherry.distribution.errors import Refused
from wherry.distribution.fetch import fetch
from wherry.distribution.repository import open_repository
from wherry.distribution.source import open_source
from wherry.errors import Failed, InvalidParameter
from wherry.reference import parse
from wherry.spec.distribution import ANONYMOUS, Auth
from wherry.spec.image import Descriptor

ANN = Auth(username="ann", password="secret")
DATA = bytes(range(256)) * 5000
BLOB = Descriptor(digest=digest(DATA), size=len(DATA))  # type: ignore[arg-type]
DOWN = "http://127.0.0.1:1"


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


@pytest.fixture
async def mirror() -> AsyncIterator[FakeRegistry]:
    async with serve(FakeRegistry()) as found:
        yield found


def mirrored(upstream: FakeRegistry, *mirrors: str) -> RegistryConfig:
    return RegistryConfig(hosts={upstream.host: HostConfig(mirrors=mirrors)})


class Memory:
    """A sink."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes | bytearray) -> None:
        self.data += data

    async def restart(self) -> None:
        self.data = b""


async def no_pause(seconds: float) -> None:
    pass


async def download(config: RegistryConfig, upstream: FakeRegistry, blob: Descriptor = BLOB) -> Memory:
    sink = Memory()
    async with open_source(config, parse(f"{upstream.host}/x:1"), ANONYMOUS) as source:
        await fetch(source, blob, sink, received=lambda _: None, pausing=lambda _: None, sleep=no_pause)
    return sink


async def test_a_mirror_of_any_registry_is_asked_first_and_told_whose_image_it_is(upstream, mirror):
    made = make([{"a": b"1"}])
    mirror.add("x", "1", made)
    async with open_source(mirrored(upstream, mirror.base), parse(f"{upstream.host}/x:1"), ANN) as source:
        assert (await source.manifest("1")).data == made.manifest
    assert upstream.log == []
    assert [request.query for request in mirror.asked("/manifests/")] == [{"ns": upstream.host}]
    assert {request.authorization for request in mirror.log} == {None}


async def test_what_stands_behind_v2_in_a_mirrors_url_goes_before_the_repository(upstream, mirror):
    made = make([{"a": b"1"}])
    mirror.add("proxy/quay/x", "1", made)
    config = mirrored(upstream, f"{mirror.base}/v2/proxy/quay/")
    async with open_source(config, parse(f"{upstream.host}/x:1"), ANONYMOUS) as source:
        assert (await source.manifest("1")).data == made.manifest


@pytest.mark.parametrize(
    ("url", "base", "prefix"),
    [
        ("https://m.test", "https://m.test", ""),
        ("https://m.test/path/", "https://m.test/path", ""),
        ("https://m.test/v2", "https://m.test", ""),
        ("https://m.test/v2/", "https://m.test", ""),
        ("https://m.test/v2/a/b", "https://m.test", "a/b/"),
        ("https://m.test/path/v2/a/", "https://m.test/path", "a/"),
    ],
)
async def test_the_parts_of_a_mirrors_url(url, base, prefix):
    config = RegistryConfig(hosts={"r.test": HostConfig(mirrors=[url])})
    first, *_ = await endpoints(config, "r.test")
    assert (first.base, first.prefix, first.host) == (base, prefix, "m.test")


async def test_dockers_mirrors_and_ours_go_together_for_docker_io():
    config = RegistryConfig(
        mirrors=["https://b.test", "https://a.test"], hosts={"docker.io": HostConfig(mirrors=["https://a.test"])}
    )
    assert config.mirrors_of("docker.io") == ["https://a.test", "https://b.test"]
    assert config.mirrors_of("quay.io") == []


@pytest.mark.parametrize("trouble", ["down", "lacking", "refusing", "failing", "lying"])
async def test_a_mirror_in_trouble_is_passed_over_for_the_next_and_upstream_is_last(upstream, mirror, trouble):
    made = make([{"a": b"1"}])
    upstream.add("x", "1", made)
    base = DOWN if trouble == "down" else mirror.base
    if trouble in ("refusing", "failing"):
        mirror.failures["/v2/x/manifests/1"] = [403 if trouble == "refusing" else 500]
    if trouble == "lying":
        mirror.manifests["x", "1"] = (made.manifest + b" ", made.media_type)
        mirror.headers = {"Docker-Content-Digest": made.digest}
    async with open_source(mirrored(upstream, base), parse(f"{upstream.host}/x:1"), ANONYMOUS) as source:
        assert (await source.manifest("1")).data == made.manifest
        await source.manifest("1")
    assert len(upstream.asked("/manifests/")) == 2
    assert len(mirror.asked("/manifests/")) == (0 if trouble == "down" else 1)  # and not asked again


async def test_when_nobody_has_it_upstreams_words_are_told(upstream, mirror):
    upstream.add("x", "2", make([{"a": b"1"}]))
    async with open_source(mirrored(upstream, mirror.base), parse(f"{upstream.host}/x:1"), ANONYMOUS) as source:
        with pytest.raises(Refused, match="manifest unknown"):
            await source.manifest("1")


async def test_a_blob_the_mirror_lacks_comes_from_upstream(upstream, mirror):
    upstream.blobs[BLOB.digest] = DATA
    assert (await download(mirrored(upstream, mirror.base), upstream)).data == DATA
    assert len(mirror.asked("/blobs/")) == 1


async def test_a_blob_the_mirror_broke_off_goes_on_at_upstream_when_the_mirror_brings_no_more(upstream, mirror):
    upstream.blobs[BLOB.digest] = mirror.blobs[BLOB.digest] = DATA
    mirror.cuts[BLOB.digest] = [300_000, 0]
    assert (await download(mirrored(upstream, mirror.base), upstream)).data == DATA
    assert [request.range for request in mirror.asked("/blobs/")] == [None, "bytes=300000-"]
    assert [request.range for request in upstream.asked("/blobs/")] == ["bytes=300000-"]


async def test_a_push_goes_to_the_registry_itself(upstream, mirror):
    config = mirrored(upstream, mirror.base)
    async with open_repository(config, parse(f"{upstream.host}/x:1"), ANN, push=True) as repository:
        assert repository.connection.endpoint.base == upstream.base
    assert mirror.log == []


async def test_several_tasks_that_find_a_mirror_useless_move_on_once(upstream, mirror):
    async with serve(FakeRegistry()) as second:
        config = mirrored(upstream, mirror.base, second.base)
        async with open_source(config, parse(f"{upstream.host}/x:1"), ANONYMOUS) as source:
            first = source.connection
            for _ in range(3):
                await source.leave(first, Failed("useless"))
            assert source.connection.endpoint.base == second.base


@pytest.mark.parametrize(
    "host",
    [
        HostConfig(mirrors=["m.test"]),
        HostConfig(mirrors=["ftp://m.test"]),
        HostConfig(proxy="socks5://x"),
    ],
)
def test_a_setting_that_can_never_be_right_is_refused_at_start(host):
    with pytest.raises(InvalidParameter):
        check(RegistryConfig(hosts={"r.test": host}))
    with pytest.raises(InvalidParameter, match="want host"):
        check(RegistryConfig(hosts={"https://r.test": HostConfig()}))


async def test_what_is_said_of_docker_io_holds_at_its_real_address():
    config = RegistryConfig(hosts={"docker.io": HostConfig(proxy="http://p.test:1")})
    check(config)
    (endpoint,) = await endpoints(config, "docker.io")
    assert endpoint.host == "registry-1.docker.io"
    assert config.proxy(endpoint, f"{endpoint.base}/v2/") == "http://p.test:1"


@pytest.mark.parametrize(
    ("name", "host", "words"),
    [
        ("docker.io", HostConfig(insecure=True), "cannot be insecure"),
        ("index.docker.io", HostConfig(), "is called docker.io"),
    ],
)
def test_what_docker_io_cannot_be_is_refused_at_start(name, host, words):
    with pytest.raises(InvalidParameter, match=words):
        check(RegistryConfig(hosts={name: host}))


def test_a_ca_that_is_not_there_is_named_at_start(tmp_path):
    with pytest.raises(InvalidParameter, match=r"CA certificate .*none\.pem of r\.test"):
        check(RegistryConfig(hosts={"r.test": HostConfig(ca=tmp_path / "none.pem")}))


# --- layers from elsewhere --------------------------------------------------------------------------------------------


async def test_a_layer_the_registry_may_not_hand_out_comes_from_its_own_address(upstream, mirror):
    """The fake `mirror` plays the host of the address."""
    mirror.blobs[BLOB.digest] = DATA
    url = f"{mirror.base}/v2/any/blobs/{BLOB.digest}"
    foreign = Descriptor(digest=BLOB.digest, size=BLOB.size, urls=["ftp://x/", f"{mirror.base}/none", url])
    sink = Memory()
    async with open_source(RegistryConfig(), parse(f"{upstream.host}/x:1"), ANN) as source:
        await fetch(source, foreign, sink, received=lambda _: None, pausing=lambda _: None, sleep=no_pause)
    assert sink.data == DATA
    assert {request.authorization for request in mirror.log} == {None}


async def test_the_registrys_own_copy_is_preferred(upstream, mirror):
    upstream.blobs[BLOB.digest] = DATA
    foreign = Descriptor(digest=BLOB.digest, size=BLOB.size, urls=[f"{mirror.base}/v2/any/blobs/{BLOB.digest}"])
    assert (await download(RegistryConfig(), upstream, foreign)).data == DATA
    assert mirror.log == []


async def test_a_foreign_layer_that_breaks_off_is_resumed_at_its_address(upstream, mirror):
    mirror.blobs[BLOB.digest] = DATA
    mirror.cuts[BLOB.digest] = [100_000]
    foreign = Descriptor(digest=BLOB.digest, size=BLOB.size, urls=[f"{mirror.base}/v2/any/blobs/{BLOB.digest}"])
    assert (await download(RegistryConfig(), upstream, foreign)).data == DATA
    assert [request.range for request in mirror.asked("/blobs/")] == [None, "bytes=100000-"]
    assert len(upstream.asked("/blobs/")) == 1
