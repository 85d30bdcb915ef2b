import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.world import NOW, FakeImage, World
from wherry.containers.record import MountPoint, Status
from wherry.containers.views.listing import list_containers
from wherry.containers.views.shapes import human_duration, human_status
from wherry.digest import of
from wherry.errors import InvalidParameter, NotFound
from wherry.filters import Filters
from wherry.network.endpoint import Endpoint, Port
from wherry.spec.engine import ContainerConfig, HostConfig
from wherry.spec.image import Descriptor

SECOND = 10**9
BRIDGE = Endpoint(
    network="bridge",
    network_id="b" * 64,
    endpoint_id="e" * 64,
    mac="02:42:ac:11:00:02",
    ip="172.17.0.2",
    prefix=16,
    gateway="172.17.0.1",
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def names(world: World, *, all: bool = True, limit: int = 0, **filters: str | tuple[str, ...]) -> list[str]:
    fields = {key.replace("_", "-"): (value,) if isinstance(value, str) else value for key, value in filters.items()}
    found = await list_containers(world.deps, all=all, limit=limit, filters=Filters(fields))
    return [each["Names"][0].removeprefix("/") for each in found]  # type: ignore[index]


async def test_a_summary_has_docker_s_shape(world: World) -> None:
    container = await world.add(
        "web",
        args=["sh", "-c", "sleep 9"],
        config=ContainerConfig(image="busybox", labels={"a": "b"}, exposed_ports={"80/tcp": {}, "90/udp": {}}),
        endpoints=[BRIDGE],
        ports=[Port(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080)],
        mounts=[
            MountPoint(type="bind", source="/tmp", destination="/host", mode="ro", rw=False, propagation="rprivate")
        ],
    )
    (found,) = await list_containers(world.deps)
    assert found.pop("Status").startswith("Up ")  # type: ignore[attr-defined]
    assert found == {
        "Id": container.id,
        "Names": ["/web"],
        "Image": "busybox",
        "ImageID": "sha256:" + "1" * 64,
        "Command": "sh -c 'sleep 9'",
        "Created": NOW // SECOND,
        "Ports": [
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 90, "Type": "udp"},
        ],
        "Labels": {"a": "b"},
        "State": "running",
        "HostConfig": {"NetworkMode": "bridge"},
        "NetworkSettings": {
            "Networks": {
                "bridge": {
                    "IPAMConfig": None,
                    "Links": None,
                    "Aliases": None,
                    "MacAddress": "02:42:ac:11:00:02",
                    "DriverOpts": None,
                    "GwPriority": 0,
                    "NetworkID": "b" * 64,
                    "EndpointID": "e" * 64,
                    "Gateway": "172.17.0.1",
                    "IPAddress": "172.17.0.2",
                    "IPPrefixLen": 16,
                    "IPv6Gateway": "",
                    "GlobalIPv6Address": "",
                    "GlobalIPv6PrefixLen": 0,
                    "DNSNames": None,
                }
            }
        },
        "Mounts": [
            {
                "Type": "bind",
                "Source": "/tmp",
                "Destination": "/host",
                "Mode": "ro",
                "RW": False,
                "Propagation": "rprivate",
            }
        ],
    }


async def test_running_ones_by_default_all_on_request_newest_first(world: World) -> None:
    for age, (name, status) in enumerate(
        [("old", Status.EXITED), ("up", Status.RUNNING), ("held", Status.PAUSED), ("new", Status.CREATED)]
    ):
        await world.add(name, status=status, created=NOW + age)
    await world.add("again", status=Status.RESTARTING, created=NOW - 1)
    assert await names(world, all=False) == ["held", "up", "again"]
    assert await names(world) == ["new", "held", "up", "old", "again"]
    assert await names(world, all=False, limit=2) == ["new", "held"]


async def test_a_half_made_container_is_not_listed(world: World) -> None:
    (await world.add("making", status=Status.CREATED)).complete = False
    assert await names(world) == []


async def test_sizes_come_on_request(world: World) -> None:
    container = await world.add("web")
    world.snapshots.bytes[container.id] = 123
    (plain,) = await list_containers(world.deps)
    (sized,) = await list_containers(world.deps, size=True)
    assert "SizeRw" not in plain
    assert (sized["SizeRw"], sized["SizeRootFs"]) == (123, 1123)


async def test_the_image_is_shown_by_id_once_its_name_means_another(world: World) -> None:
    await world.add("web")
    world.images.by_name["busybox"] = FakeImage("sha256:" + "2" * 64)
    (found,) = await list_containers(world.deps)
    assert found["Image"] == found["ImageID"] == "sha256:" + "1" * 64


async def test_a_name_also_means_the_further_platforms_held_of_it(world: World) -> None:
    manifest = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=of(b"m"), size=7)
    await world.add("web")
    mine = FakeImage("sha256:" + "1" * 64, manifests=(manifest,))
    world.images.by_name["busybox"] = FakeImage("sha256:" + "2" * 64, platforms=(mine,))
    (found,) = await list_containers(world.deps)
    assert (found["Image"], found["ImageID"]) == ("busybox", mine.id)
    assert found["ImageManifestDescriptor"] == {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": 7,
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    assert await names(world, ancestor="busybox") == ["web"]


async def test_each_image_is_looked_up_once(world: World) -> None:
    for number in range(20):
        await world.add(f"web{number}")
    await list_containers(world.deps)
    assert world.images.asked == ["busybox"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "Less than a second"),
        (0.99, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (800 * 86400, "2 years"),
        (-5, "Less than a second"),
    ],
)
def test_durations_are_in_docker_s_words(seconds: float, words: str) -> None:
    assert human_duration(int(seconds * SECOND)) == words


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (Status.CREATED, {}, "Created"),
        (Status.RUNNING, {}, "Up 3 minutes"),
        (Status.PAUSED, {}, "Up 3 minutes (Paused)"),
        (Status.RESTARTING, {"exit_code": 2, "finished_at": NOW + 178 * SECOND}, "Restarting (2) 2 seconds ago"),
        (Status.EXITED, {"exit_code": 137, "finished_at": NOW + 170 * SECOND}, "Exited (137) 10 seconds ago"),
        (Status.EXITED, {"started_at": 0, "exit_code": 127}, "Created"),
        (Status.DEAD, {}, "Dead"),
        (Status.REMOVING, {}, "Removal In Progress"),
    ],
)
async def test_the_status_is_in_docker_s_words(world: World, status: Status, state: dict[str, int], words: str) -> None:
    container = await world.add("web", status=status, **state)
    assert human_status(container, NOW + 180 * SECOND) == words


async def test_filters_by_name_id_and_label(world: World) -> None:
    web = await world.add("web-1", config=ContainerConfig(image="busybox", labels={"tier": "web", "x": ""}))
    await world.add("db-1", config=ContainerConfig(image="busybox", labels={"tier": "db"}), created=NOW - 1)
    assert await names(world, name="web") == ["web-1"]
    assert await names(world, name="^/web") == ["web-1"]
    assert await names(world, name="-1$") == ["web-1", "db-1"]
    assert await names(world, name="[") == []
    assert await names(world, id=web.id[:12]) == ["web-1"]
    assert await names(world, label="tier") == ["web-1", "db-1"]
    assert await names(world, label=("tier=web", "x")) == ["web-1"]
    assert await names(world, label="tier=none") == []


async def test_filters_by_state(world: World) -> None:
    await world.add("up")
    await world.add("failed", status=Status.EXITED, exit_code=3, created=NOW - 1)
    await world.add("fine", status=Status.EXITED, created=NOW - 2)
    await world.add("new", status=Status.CREATED, created=NOW - 3)
    assert await names(world, all=False, status="exited") == ["failed", "fine"]
    assert await names(world, all=False, status=("created", "running")) == ["up", "new"]
    assert await names(world, exited="0") == ["fine"]
    assert await names(world, exited=("3", "4")) == ["failed"]
    assert await names(world, all=False, exited="0") == []
    assert await names(world, health="none") == ["up", "failed", "fine", "new"]
    assert await names(world, health="healthy") == []
    assert await names(world, is_task="true") == []
    assert len(await names(world, is_task="false")) == 4


async def test_filters_by_neighbours(world: World) -> None:
    for age, name in enumerate(["first", "second", "third"]):
        await world.add(name, created=NOW + age)
    assert await names(world, before="second") == ["first"]
    assert await names(world, since="second") == ["third"]
    with pytest.raises(NotFound, match="No such container: x"):
        await names(world, before="x")


async def test_filters_by_network_volume_and_ports(world: World) -> None:
    await world.add(
        "web",
        endpoints=[BRIDGE],
        config=ContainerConfig(image="busybox", exposed_ports={"80/tcp": {}, "9000-9002/tcp": {}}),
        ports=[Port(container_port=80, protocol="tcp", host_ip="0.0.0.0", host_port=8080)],
        mounts=[MountPoint(type="volume", source="/v/_data", name="data", destination="/srv")],
    )
    await world.add("other", host=HostConfig(network_mode="host"), created=NOW - 1)
    assert await names(world, network="bridge") == ["web"]
    assert await names(world, network="bbbbbb") == ["web"]
    assert await names(world, network="host") == ["other"]
    assert await names(world, network="") == []
    assert await names(world, volume="data") == ["web"]
    assert await names(world, volume="/srv") == ["web"]
    assert await names(world, volume="/v/_data") == []
    assert await names(world, publish="8080") == ["web"]
    assert await names(world, publish="8079-8081/tcp") == ["web"]
    assert await names(world, publish="8080/udp") == []
    assert await names(world, publish="80") == []
    assert await names(world, expose="80") == ["web"]
    assert await names(world, expose="9001/tcp") == ["web"]
    assert await names(world, expose="9003") == []


async def test_the_ancestor_filter_knows_images_built_on_another(world: World) -> None:
    world.images.by_name["base"] = FakeImage("sha256:" + "3" * 64, diff_ids=("a", "b"))
    world.images.by_name["derived"] = FakeImage("sha256:" + "4" * 64, diff_ids=("a", "b", "c"))
    world.images.by_name["scratch"] = FakeImage("sha256:" + "5" * 64, diff_ids=())
    await world.add("one", image="base")
    await world.add("two", image="derived", created=NOW - 1)
    await world.add("three", image="scratch", created=NOW - 2)
    assert await names(world, ancestor="base") == ["one", "two"]
    assert await names(world, ancestor="derived") == ["two"]
    assert await names(world, ancestor="scratch") == ["three"]
    assert await names(world, ancestor="nosuch") == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("zzz", "x", "invalid filter 'zzz'"),
        ("status", "x", "invalid filter 'status=x'"),
        ("exited", "x", "invalid filter 'exited=x'"),
        ("health", "x", "unrecognized filter value for health: x"),
        ("is_task", "x", "invalid filter 'is-task=[x]'"),
        ("publish", "x", 'error while looking up for publish x: strconv.ParseUint: parsing "x": invalid syntax'),
        ("expose", "70000", 'error while looking up for expose 70000: strconv.ParseUint: parsing "70000"'),
        ("publish", "9-8", "invalid range"),
    ],
)
async def test_filters_that_make_no_sense_are_refused(world: World, key: str, value: str, words: str) -> None:
    await world.add("web")
    with pytest.raises(InvalidParameter) as error:
        await names(world, **{key: value})
    assert words in error.value.message


async def test_five_hundred_containers_cost_little(world: World) -> None:
    """A guard against work per container that has no business there; the limit is twenty times what it takes."""
    for number in range(500):
        await world.add(f"web{number}", status=Status.CREATED, created=NOW + number)
    before = time.process_time()
    found = await list_containers(world.deps, all=True)
    assert len(found) == 500
    assert time.process_time() - before < 0.5
