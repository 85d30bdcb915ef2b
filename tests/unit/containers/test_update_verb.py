"""update: Docker's rules for limits and restart policies, and that it happens wholly or not at all."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from containerkit.life import PORT, REMOVES_ITSELF, LifeWorld, restart
from wherry.containers.life.update import changed_limits, merge, update
from wherry.containers.making.config import check_update
from wherry.containers.making.limits import Support, keep_supported
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, Unavailable, WherryError
from wherry.kernel import cgroup
from wherry.spec.engine import HostConfig, PortBinding, Resources, RestartPolicy, UpdateContainer, decode

MIB = 1 << 20
SWAP = "update the memoryswap at the same time"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[LifeWorld]:
    world = LifeWorld(tmp_path)
    await world.load()
    yield world
    await world.close()


# What a container's limits become


def test_only_what_is_given_changes() -> None:
    host = HostConfig(cpu_shares=5, nano_cpus=10**9, memory=64 * MIB, memory_swap=128 * MIB, pids_limit=7)
    assert merge(host, UpdateContainer()) == host
    body = UpdateContainer(cpu_shares=6, cpuset_cpus="0", memory_reservation=32 * MIB)
    assert merge(host, body) == replace(host, cpu_shares=6, cpuset_cpus="0", memory_reservation=32 * MIB)


@pytest.mark.parametrize(
    ("host", "body", "message"),
    [
        ({"cpu_period": 1000}, {"nano_cpus": 1}, "Nano CPUs cannot be updated as CPU Period has already been set"),
        ({"cpu_quota": 1000}, {"nano_cpus": 1}, "Nano CPUs cannot be updated as CPU Quota has already been set"),
        ({"nano_cpus": 1}, {"cpu_period": 1000}, "CPU Period cannot be updated as NanoCPUs has already been set"),
        ({"nano_cpus": 1}, {"cpu_quota": 1000}, "CPU Quota cannot be updated as NanoCPUs has already been set"),
        ({"memory": 64 * MIB, "memory_swap": 128 * MIB}, {"memory": 256 * MIB}, SWAP),
        ({"auto_remove": True}, {"restart_policy": RestartPolicy(name="always")}, "because AutoRemove is enabled"),
    ],
)
def test_contradictions_are_refused_in_docker_s_words(host: Any, body: Any, message: str) -> None:
    with pytest.raises(Conflict, match=message):
        merge(HostConfig(**host), UpdateContainer(**body))


def test_swap_below_the_memory_limit_is_refused_before_the_kernel_does() -> None:
    with pytest.raises(InvalidParameter, match="Minimum memoryswap limit should be larger than memory limit"):
        merge(HostConfig(memory=64 * MIB, memory_swap=128 * MIB), UpdateContainer(memory_swap=32 * MIB))


def test_a_memory_limit_where_there_was_none_brings_swap_as_at_creation() -> None:
    """Docker refuses this, with words about a memoryswap limit that nobody has set."""
    found = merge(HostConfig(), UpdateContainer(memory=64 * MIB))
    assert (found.memory, found.memory_swap) == (64 * MIB, 128 * MIB)
    unlimited = merge(HostConfig(memory_swap=-1), UpdateContainer(memory=64 * MIB))
    assert (unlimited.memory, unlimited.memory_swap) == (64 * MIB, -1)


@pytest.mark.parametrize(("given", "kept"), [(None, 7), (-1, 0), (0, 0), (-9, 0), (12, 12)])
def test_any_negative_limit_of_processes_is_none(given: int | None, kept: int) -> None:
    assert merge(HostConfig(pids_limit=7), UpdateContainer(pids_limit=given)).pids_limit == kept


def test_a_policy_without_a_name_is_no_policy() -> None:
    host = HostConfig(restart_policy=RestartPolicy(name="always"))
    assert merge(host, UpdateContainer(restart_policy=RestartPolicy(maximum_retry_count=3))) == host
    policy = RestartPolicy(name="on-failure", maximum_retry_count=3)
    assert merge(host, UpdateContainer(restart_policy=policy)).restart_policy == policy


def test_what_belongs_together_is_told_together() -> None:
    before = HostConfig(memory=64 * MIB, memory_swap=128 * MIB, cpu_period=1000, cpu_quota=5000, cpu_shares=2)
    after = replace(before, memory=32 * MIB, cpu_quota=6000)
    assert changed_limits(before, after) == Resources(
        memory=32 * MIB, memory_swap=128 * MIB, cpu_period=1000, cpu_quota=6000
    )
    assert changed_limits(before, before) == Resources()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"memory": 1000}, "Minimum memory limit allowed is 6MB"),
        ({"memory": -5}, "Minimum memory limit allowed is 6MB"),
        ({"nano_cpus": 10**15}, "as there are only"),
        ({"cpu_period": 5}, "CPU cfs period can not be less than 1ms"),
        ({"cpuset_cpus": "0-9999"}, "Requested CPUs are not available|invalid format: 0-9999"),
        ({"cpuset_cpus": "0-999999999"}, "Invalid value 0-999999999 for cpuset cpus: invalid format: 0-999999999"),
        ({"cpuset_cpus": "x"}, "Invalid value x for cpuset cpus: invalid format: x"),
        ({"cpuset_mems": "99"}, "Requested memory nodes are not available - requested 99, available: 0"),
        ({"restart_policy": RestartPolicy(name="foo")}, "invalid restart policy: unknown policy 'foo'"),
        ({"restart_policy": RestartPolicy(name="always", maximum_retry_count=3)}, "can only be used with 'on-failure'"),
    ],
)
def test_what_no_container_can_have_is_refused(body: Any, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        check_update(UpdateContainer(**body))


def test_swap_alone_can_be_changed_though_not_be_created() -> None:
    check_update(UpdateContainer(memory_swap=128 * MIB))


def test_a_client_s_body_is_read_with_ours_beside_it() -> None:
    raw = b"""{"CpuShares": 512, "Memory": null, "KernelMemory": 5, "RestartPolicy": {"Name": "no"},
        "PublishAdd": {"80/tcp": [{"HostPort": "8080"}], "81/tcp": null}, "PublishRm": ["82"], "MountRm": ["/x"],
        "MountAdd": [{"Type": "tmpfs", "Target": "/t"}], "DeviceRm": ["/dev/x"],
        "DeviceAdd": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/n", "CgroupPermissions": "rw"}]}"""
    found = decode(UpdateContainer, raw)
    assert (found.cpu_shares, found.memory, found.restart_policy.name) == (512, 0, "no")
    assert found.publish_add == {"80/tcp": [PortBinding(host_port="8080")]}
    assert (found.publish_rm, found.mount_rm, found.device_rm) == (["82"], ["/x"], ["/dev/x"])
    assert found.mount_add is not None
    assert found.mount_add[0].target == "/t"
    assert found.device_add is not None
    assert found.device_add[0].path_in_container == "/dev/n"


# What the kernel lacks


def test_limits_the_kernel_lacks_are_discarded_with_docker_s_warnings() -> None:
    asked = HostConfig(memory=64 * MIB, memory_swappiness=5, oom_kill_disable=True, blkio_weight=5)
    nothing = Support(swap=False, swappiness=False, oom_kill_disable=False, blkio_weight=False)
    found, warnings = keep_supported(asked, nothing)
    assert found == HostConfig(memory=64 * MIB, memory_swap=-1)
    assert warnings == [
        "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
        "Memory limited without swap.",
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
        "Memory swappiness discarded.",
        "Your kernel does not support OomKillDisable. OomKillDisable discarded.",
        "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
    ]
    assert keep_supported(asked, Support()) == (asked, [])


def test_an_oom_killer_that_is_off_without_a_limit_is_warned_of() -> None:
    found, warnings = keep_supported(UpdateContainer(oom_kill_disable=True), Support())
    assert found.oom_kill_disable is True
    assert len(warnings) == 1
    assert "no memory limit is set" in warnings[0]


# Doing it


def ports_of(container: Container) -> list[int]:
    return [port.host_port for port in container.ports]


PUBLISHED = HostConfig(
    runtime="crun", network_mode="default", port_bindings={"80/tcp": [PortBinding(host_port="8080")]}
)
SWAPPED = UpdateContainer(
    publish_add={"81/tcp": [PortBinding(host_port="8081")]}, publish_rm=["80"], memory=64 * MIB, cpu_shares=512
)


async def test_a_running_container_changes_at_once(world: LifeWorld) -> None:
    container = await world.run("web", host=PUBLISHED)
    assert await update(world.deps, "web", SWAPPED) == []
    (told,) = world.shims.last.limits
    assert told == {"memory": {"limit": 64 * MIB, "swap": 128 * MIB}, "cpu": {"shares": 512}}
    assert ports_of(container) == [8081]
    stored = world.stored(container)
    assert stored is not None
    assert stored.host_config.port_bindings == {"81/tcp": [PortBinding(host_port="8081")]}
    assert (stored.host_config.memory, stored.host_config.cpu_shares) == (64 * MIB, 512)
    assert [port.host_port for port in stored.ports] == [8081]
    assert world.actions()[-1] == "update"


async def test_one_that_does_not_run_has_it_at_its_next_start(world: LifeWorld) -> None:
    container = await world.create("web", host=PUBLISHED)
    world.steps.clear()
    await update(world.deps, "web", SWAPPED)
    assert world.steps.taken == ["write containers"]
    stored = world.stored(container)
    assert stored is not None
    assert stored.host_config.port_bindings == {"81/tcp": [PortBinding(host_port="8081")]}
    assert stored.host_config.memory == 64 * MIB


@pytest.mark.parametrize("step", range(10))
async def test_a_failure_at_any_step_leaves_everything_as_it_was(world: LifeWorld, step: int) -> None:
    container = await world.run("web", host=PUBLISHED)
    before = container.host_config
    world.steps.clear(fail_at=step)
    failure: WherryError | None = None
    try:
        await update(world.deps, "web", SWAPPED)
    except (Unavailable, Failed) as exc:
        failure = exc
    if failure is None:
        assert step >= len(world.steps.taken)
        assert ports_of(container) == [8081]
        return
    assert container.host_config == before
    assert container.ports == (PORT,)
    assert world.networks.published.get(container.id, (PORT,)) == (PORT,)
    stored = world.stored(container)
    assert stored is not None
    assert stored.host_config == before
    assert "update" not in world.actions()


async def test_limits_the_kernel_refuses_are_taken_back(world: LifeWorld) -> None:
    container = await world.run("web", host=replace(PUBLISHED, memory=32 * MIB, cpu_shares=3))
    world.steps.failing["update"] = Failed("memory.limit_in_bytes: device or resource busy")
    with pytest.raises(Failed, match=f"Cannot update container {container.id}: memory.limit_in_bytes: device or"):
        await update(world.deps, "web", UpdateContainer(memory=16 * MIB))
    assert container.host_config.memory == 32 * MIB
    assert world.steps.taken.count("update") == 2


async def test_limits_without_an_end_are_lifted(world: LifeWorld, tmp_path: Path) -> None:
    (tmp_path / "pids.max").write_text("7")
    (tmp_path / "cpu.cfs_quota_us").write_text("5000")
    await world.run("web", host=replace(PUBLISHED, pids_limit=7, cpu_quota=5000))
    world.shims.last.cgroups = {"pids": str(tmp_path), "cpu": str(tmp_path)}
    await update(world.deps, "web", UpdateContainer(pids_limit=-1, cpu_quota=-1))
    assert (tmp_path / "pids.max").read_text()[:3] == "max"
    assert (tmp_path / "cpu.cfs_quota_us").read_text()[:2] == "-1"
    assert world.shims.last.limits == []


async def test_errors_name_the_container_as_docker_does(world: LifeWorld) -> None:
    container = await world.create("web", host=REMOVES_ITSELF)
    with pytest.raises(Conflict) as caught:
        await update(world.deps, "web", UpdateContainer(restart_policy=RestartPolicy(name="always")))
    assert caught.value.message == (
        f"Cannot update container {container.id}: Restart policy cannot be updated because AutoRemove is enabled for "
        "the container"
    )
    container.state.status = Status.DEAD
    with pytest.raises(Conflict, match='container is marked for removal and cannot be "update"'):
        await update(world.deps, "web", UpdateContainer())
    with pytest.raises(NotFound, match="No such container: nope"):
        await update(world.deps, "nope", UpdateContainer())
    with pytest.raises(InvalidParameter):
        await update(world.deps, "nope", UpdateContainer(memory=5))


async def test_the_new_restart_policy_decides_about_the_next_exit(world: LifeWorld) -> None:
    container = await world.run("web", host=restart("always"))
    await update(world.deps, "web", UpdateContainer(restart_policy=RestartPolicy(name="no")))
    world.shims.last.end(1)
    await world.idle()
    assert container.state.status is Status.EXITED


async def test_mounts_and_devices_are_all_taken_back_when_one_fails(world: LifeWorld, tmp_path: Path) -> None:
    from wherry.spec.engine import Mount

    container = await world.create("web")
    (tmp_path / "a").mkdir()
    before = container.host_config, container.mounts
    body = UpdateContainer(
        mount_add=[
            Mount(type="bind", source=str(tmp_path / "a"), target="/a"),
            Mount(type="bind", source=str(tmp_path / "missing"), target="/b"),
        ]
    )
    with pytest.raises(InvalidParameter):
        await update(world.deps, "web", body)
    assert (container.host_config.mounts or None, container.mounts) == (before[0].mounts or None, before[1])
    with pytest.raises(NotFound):
        await update(world.deps, "web", UpdateContainer(mount_rm=["/nope"]))
    with pytest.raises(NotFound):
        await update(world.deps, "web", UpdateContainer(device_rm=["/dev/nope"]))
    await update(world.deps, "web", UpdateContainer(mount_add=body.mount_add[:1] if body.mount_add else None))
    assert [point.destination for point in container.mounts] == ["/a"]
    await update(world.deps, "web", UpdateContainer(mount_rm=["/a/"], mount_add=[Mount(type="tmpfs", target="/a")]))
    assert [(point.destination, point.type) for point in container.mounts] == [("/a", "tmpfs")]


@pytest.mark.parametrize(
    ("lift", "groups", "file", "written"),
    [
        (cgroup.lift_pids, "", "pids.max", "max"),
        (cgroup.lift_pids, "pids", "pids.max", "max"),
        (cgroup.lift_cpu, "", "cpu.max", "max"),
        (cgroup.lift_cpu, "cpu", "cpu.cfs_quota_us", "-1"),
    ],
)
def test_a_limit_is_lifted_in_either_kind_of_group(
    tmp_path: Path, lift: Callable[[dict[str, str]], None], groups: str, file: str, written: str
) -> None:
    (tmp_path / file).touch()
    lift({groups: str(tmp_path)})
    assert (tmp_path / file).read_text() == written
    lift({"other": "/nowhere"})


async def test_a_port_that_moves_is_given_up_before_it_is_taken(world: LifeWorld) -> None:
    container = await world.run("web", host=PUBLISHED)
    world.steps.clear()
    moved = UpdateContainer(publish_rm=["80"], publish_add={"81/tcp": [PortBinding(host_port="8080")]})
    await update(world.deps, "web", moved)
    assert world.steps.taken == ["change ports", "change ports", "write containers"]
    assert [(port.container_port, port.host_port) for port in container.ports] == [(81, 8080)]


@pytest.mark.parametrize("step", range(3))
async def test_a_port_that_cannot_move_stays(world: LifeWorld, step: int) -> None:
    container = await world.run("web", host=PUBLISHED)
    world.steps.clear(fail_at=step)
    moved = UpdateContainer(publish_rm=["80"], publish_add={"81/tcp": [PortBinding(host_port="8080")]})
    with pytest.raises(Unavailable):
        await update(world.deps, "web", moved)
    assert container.ports == (PORT,)
    assert world.networks.published.get(container.id, (PORT,)) == (PORT,)
    assert container.host_config.port_bindings == PUBLISHED.port_bindings
