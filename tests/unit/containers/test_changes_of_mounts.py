"""Mounts and devices that come and go: all or nothing, in the container and in the record."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from containerkit.life import LifeWorld
from wherry.containers.life.changes_mounts import add_device, add_mount, remove_device, remove_mount
from wherry.containers.life.remove import remove
from wherry.containers.life.start import start
from wherry.containers.life.stop import stop
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, NotSupported, Unavailable
from wherry.kernel.mount import ATTR_RDONLY, MS_PRIVATE, MS_SLAVE
from wherry.runtime.shim_client import Part
from wherry.spec.engine import BindOptions, DeviceMapping, HostConfig, ImageOptions, Mount, VolumeOptions

NULL = DeviceMapping(path_on_host="/dev/null", path_in_container="/dev/own", cgroup_permissions="rw")
KMSG = DeviceMapping(path_on_host="/dev/kmsg", path_in_container="/dev/own", cgroup_permissions="r")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


def bind(source: Path | str, target: str = "/x", **more: object) -> Mount:
    return Mount(type="bind", source=str(source), target=target, **more)  # type: ignore[arg-type]


def inside(world: LifeWorld) -> dict[str, object]:
    return dict(world.shims.last.inside)


def facts(container: Container | None) -> object:
    """What may change here."""
    assert container is not None
    return container.mounts, container.host_config


def destinations(container: Container) -> list[str]:
    return [point.destination for point in container.mounts]


async def test_a_bind_comes_to_a_running_container_and_into_its_record(world: LifeWorld, tmp_path: Path) -> None:
    container = await world.run("web", host=HostConfig(binds=[f"{tmp_path}:/z"]))
    mount = bind(tmp_path, read_only=True, bind_options=BindOptions(id_map="caller"))
    await add_mount(world.deps, container, mount, caller=(7, 8))
    part = inside(world)["/x"]
    assert isinstance(part, Part)
    assert (part.mounts[0].source, part.id_map) == (str(tmp_path), "caller=7-8")
    assert (part.attributes, part.propagation, part.flat) == (ATTR_RDONLY, MS_PRIVATE, False)
    assert destinations(container) == ["/x", "/z"]
    assert [each.target for each in container.host_config.mounts or []] == ["/x"]
    assert facts(world.stored(container)) == facts(container)
    await stop(world.deps, "web")
    await start(world.deps, "web")
    assert "/x" in [each["destination"] for each in world.shims.specs[-1].spec["mounts"]]


async def test_a_container_that_does_not_run_has_it_from_its_next_start(world: LifeWorld, tmp_path: Path) -> None:
    container = await world.create("web")
    await add_mount(world.deps, container, bind(tmp_path))
    assert destinations(container) == ["/x"]
    await remove_mount(world.deps, container, "/x/")
    assert (destinations(container), container.host_config.mounts) == ([], [])
    assert world.shims.made == []


async def test_mounts_below_a_read_only_one_may_stay_writable(world: LifeWorld, tmp_path: Path) -> None:
    container = await world.run("web")
    options = BindOptions(read_only_non_recursive=True, non_recursive=True)
    await add_mount(world.deps, container, bind(tmp_path, read_only=True, bind_options=options))
    part = inside(world)["/x"]
    assert isinstance(part, Part)
    assert (part.flat, part.recursive) == (True, False)
    assert part.propagation != MS_SLAVE


async def test_a_tmpfs_comes_with_dockers_defaults(world: LifeWorld) -> None:
    container = await world.run("web")
    await add_mount(world.deps, container, Mount(type="tmpfs", target="/t", read_only=True))
    assert inside(world)["/t"] == ("noexec", "nosuid", "nodev", "ro")


async def test_a_volume_is_made_mounted_and_let_go(world: LifeWorld) -> None:
    container = await world.run("web")
    part = Mount(type="volume", source="data", target="/v", volume_options=VolumeOptions(subpath="a"))
    await add_mount(world.deps, container, part)
    found = inside(world)["/v"]
    assert isinstance(found, Part)
    assert (found.selector, found.beneath) == ("a", True)
    assert world.volumes.users_now("data") == [container.id]
    assert world.actions("volume") == ["create", "mount"]
    await remove_mount(world.deps, container, "/v")
    assert world.volumes.users_now("data") == []
    assert "data" in world.state.rows("volumes")
    assert world.actions("volume")[-1] == "unmount"


async def test_a_volume_that_is_mounted_twice_stays_until_the_second_goes(world: LifeWorld) -> None:
    container = await world.run("web", host=HostConfig(binds=["data:/one"]))
    await add_mount(world.deps, container, Mount(type="volume", source="data", target="/two"))
    await remove_mount(world.deps, container, "/one")
    assert container.host_config.binds == []
    assert world.volumes.users_now("data") == [container.id]
    await remove_mount(world.deps, container, "/two")
    assert world.volumes.users_now("data") == []


async def test_an_anonymous_volume_is_the_same_after_a_restart(world: LifeWorld) -> None:
    container = await world.run("web")
    await add_mount(world.deps, container, Mount(type="volume", target="/v"))
    (point,) = container.mounts
    assert [each.source for each in container.host_config.mounts or []] == [point.name]
    await remove(world.deps, "web", force=True, volumes=True)
    assert point.name not in world.state.rows("volumes")


async def test_an_image_is_mounted_read_only_and_named_in_the_record(world: LifeWorld) -> None:
    container = await world.run("web")
    mount = Mount(type="image", source="data", target="/i", image_options=ImageOptions(subpath="bin"))
    await add_mount(world.deps, container, mount)
    part = inside(world)["/i"]
    assert isinstance(part, Part)
    assert (part.selector, part.attributes, part.beneath) == ("bin", ATTR_RDONLY, False)
    image = world.images.deps.store.get("data")
    assert (container.mounts[0].image_id, container.mounts[0].chain) == (image.id, image.chain)


@pytest.mark.parametrize(
    ("mount", "kind", "words"),
    [
        (bind("/tmp", "/x/a"), InvalidParameter, "Duplicate mount point: /x/a"),
        (bind("/tmp", "/x"), Conflict, "a mount at /x would hide the one at /x/a"),
        (bind("/no/such", "/y"), InvalidParameter, "bind source path does not exist: /no/such"),
        (bind("/tmp", "/"), InvalidParameter, "destination can't be '/'"),
        (Mount(type="image", source="nosuch", target="/y"), InvalidParameter, "No such image: nosuch"),
        (Mount(type="foo", target="/y"), InvalidParameter, "mount type unknown"),
        (bind("/tmp", "/y", bind_options=BindOptions(id_map="caller")), InvalidParameter, "not known who calls"),
    ],
)
async def test_what_cannot_be_mounted_changes_nothing(
    world: LifeWorld, mount: Mount, kind: type[Exception], words: str
) -> None:
    container = await world.run("web", host=HostConfig(tmpfs={"/x/a": ""}))
    before, held = facts(world.stored(container)), world.held()
    with pytest.raises(kind, match=words):
        await add_mount(world.deps, container, mount)
    assert (facts(world.stored(container)), facts(container), world.held(), inside(world)) == (before, before, held, {})


VOLUME_STEPS = ["ensure volume", "write volumes", "fill volume", "write containers", "attach mount"]


async def test_a_volume_takes_these_steps(world: LifeWorld) -> None:
    container = await world.run("web")
    world.steps.clear()
    await add_mount(world.deps, container, Mount(type="volume", target="/v"))
    assert world.steps.taken == VOLUME_STEPS


@pytest.mark.parametrize("step", range(len(VOLUME_STEPS)))
async def test_failure_at_any_step_undoes_the_rest(world: LifeWorld, step: int) -> None:
    container = await world.run("web")
    before, held = facts(world.stored(container)), world.held()
    world.steps.clear(fail_at=step)
    with pytest.raises(Unavailable, match=VOLUME_STEPS[step]):
        await add_mount(world.deps, container, Mount(type="volume", target="/v"))
    assert (facts(world.stored(container)), facts(container), world.held(), inside(world)) == (before, before, held, {})
    await add_mount(world.deps, container, Mount(type="volume", target="/v"))


async def test_once_begun_it_goes_to_its_end_without_who_asked(world: LifeWorld, tmp_path: Path) -> None:
    container = await world.run("web")
    reached, go_on = world.steps.hold("attach mount")
    task = asyncio.create_task(add_mount(world.deps, container, bind(tmp_path)))
    await reached.wait()
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(inside(world)) == destinations(container) == ["/x"]


async def test_what_cannot_be_taken_away_stays(world: LifeWorld, tmp_path: Path) -> None:
    host = HostConfig(binds=[f"{tmp_path}:/x"], tmpfs={"/x/a": "", "/t": ""})
    container = await world.run("web", host=host)
    with pytest.raises(NotFound, match="no mount at /y in container web: it has /t, /x, /x/a"):
        await remove_mount(world.deps, container, "/y")
    with pytest.raises(Conflict, match="cannot take the mount at /x away: /x/a is mounted below it"):
        await remove_mount(world.deps, container, "/x")
    world.steps.clear(fail_at=0)
    with pytest.raises(Unavailable, match="detach mount"):
        await remove_mount(world.deps, container, "/t")
    assert destinations(container) == ["/t", "/x", "/x/a"]
    await remove_mount(world.deps, container, "/t")
    assert container.host_config.tmpfs == {"/x/a": ""}


async def test_a_container_on_its_way_out_is_left_alone(world: LifeWorld, tmp_path: Path) -> None:
    container = await world.create("web")
    container.state.status = Status.DEAD
    for change in (
        add_mount(world.deps, container, bind(tmp_path)),
        remove_mount(world.deps, container, "/x"),
        add_device(world.deps, container, NULL),
        remove_device(world.deps, container, "/dev/own"),
    ):
        with pytest.raises(Conflict, match="marked for removal"):
            await change


# devices


@pytest.fixture
def rules(world: LifeWorld, tmp_path: Path) -> Path:
    """A devices cgroup."""
    path = tmp_path / "cgroup"
    path.mkdir()
    (path / "devices.allow").touch()
    (path / "devices.deny").touch()
    return path


async def test_a_device_comes_allowed_and_goes_forbidden(world: LifeWorld, rules: Path) -> None:
    container = await world.run("web")
    world.shims.last.cgroups = {"devices": str(rules)}
    await add_device(world.deps, container, KMSG)
    assert (rules / "devices.allow").read_text() == "c 1:11 r"
    assert "/dev/own" in inside(world)
    assert facts(world.stored(container)) == facts(container)
    assert container.host_config.devices == [KMSG]
    with pytest.raises(Conflict, match="has a device at /dev/own"):
        await add_device(world.deps, container, NULL)
    await remove_device(world.deps, container, "/dev/own")
    assert (rules / "devices.deny").read_text() == "c 1:11 r"
    assert (inside(world), container.host_config.devices) == ({}, [])
    with pytest.raises(NotFound, match="no device at /dev/own was given"):
        await remove_device(world.deps, container, "/dev/own")


async def test_what_every_container_may_use_is_never_forbidden(world: LifeWorld, rules: Path) -> None:
    container = await world.run("web")
    world.shims.last.cgroups = {"devices": str(rules)}
    await add_device(world.deps, container, NULL)
    await remove_device(world.deps, container, "/dev/own")
    assert (rules / "devices.deny").read_text() == ""


async def test_a_privileged_container_needs_no_rule(world: LifeWorld) -> None:
    container = await world.run("web", host=HostConfig(privileged=True))
    await add_device(world.deps, container, KMSG)
    assert "/dev/own" in inside(world)


async def test_where_the_kernel_gives_no_way_the_container_stays_as_it_is(world: LifeWorld) -> None:
    container = await world.run("web")
    before = facts(world.stored(container))
    with pytest.raises(NotSupported, match="cgroup v2: stop the container first"):
        await add_device(world.deps, container, KMSG)
    assert (facts(world.stored(container)), facts(container), inside(world)) == (before, before, {})


async def test_a_node_that_cannot_be_made_leaves_no_permission(world: LifeWorld, rules: Path) -> None:
    container = await world.run("web")
    world.shims.last.cgroups = {"devices": str(rules)}
    world.steps.failing["make node"] = Conflict("it exists in the container")
    with pytest.raises(Conflict):
        await add_device(world.deps, container, KMSG)
    assert (rules / "devices.deny").read_text() == "c 1:11 r"
    assert container.host_config.devices is None


async def test_a_device_that_is_none_is_refused(world: LifeWorld) -> None:
    container = await world.create("web")
    with pytest.raises(Failed, match="not a device node"):
        await add_device(world.deps, container, DeviceMapping(path_on_host="/etc/passwd"))
