"""The container store: names, lookups, and what survives a restart."""

import pytest

from wherry.containers.record import Container, Status
from wherry.containers.store import ContainerStore
from wherry.errors import Conflict, InvalidParameter, NotFound
from wherry.ids import ContainerID
from wherry.spec.engine import ContainerConfig, HostConfig
from wherry.state import State


def container(number: int, name: str) -> Container:
    return Container(
        id=ContainerID(f"{number:064x}"),
        name=name,
        created=number,
        image="busybox",
        image_id="sha256:" + "0" * 64,
        path="sh",
        args=[],
        config=ContainerConfig(),
        host_config=HostConfig(),
        complete=True,
    )


@pytest.fixture
def state(tmp_path):
    opened = State(tmp_path / "state.db")
    yield opened
    opened.close()


@pytest.fixture
def store(state):
    return ContainerStore(state)


async def test_a_container_is_found_by_id_name_slashed_name_and_unique_prefix(store):
    one = container(0xAB << 248, "web")
    await store.add(one)
    for word in (one.id, "web", "/web", "ab", "ab00000"):
        assert store.resolve(word) is one


async def test_a_name_wins_over_an_id_prefix(store):
    first, second = container(0xAB << 248, "web"), container(0xCD << 248, "ab")
    await store.add(first)
    await store.add(second)
    assert store.resolve("ab") is second


async def test_an_ambiguous_prefix_and_an_unknown_name_are_refused(store):
    await store.add(container(0xAB << 248, "one"))
    await store.add(container((0xAB << 248) + 1, "two"))
    with pytest.raises(InvalidParameter, match="multiple IDs found with provided prefix: ab"):
        store.resolve("ab")
    with pytest.raises(NotFound, match="No such container: nix"):
        store.resolve("nix")
    with pytest.raises(InvalidParameter, match="value is empty"):
        store.resolve("")


async def test_an_incomplete_container_holds_its_name_but_is_not_found(store):
    half = container(1, "half")
    half.complete = False
    await store.add(half)
    with pytest.raises(NotFound):
        store.resolve("half")
    with pytest.raises(Conflict, match=f'"/half" is already in use by container "{half.id}"'):
        await store.add(container(2, "half"))


async def test_records_and_names_survive_a_restart(store, state):
    one = container(1, "one")
    await store.add(one)
    one.state.status = Status.EXITED
    one.state.exit_code = 7
    await store.save(one)
    await store.rename(one, "uno")
    again = ContainerStore(state).resolve("uno")
    assert (again.id, again.state.exit_code, again.state.status) == (one.id, 7, Status.EXITED)
    assert state.rows("names") == {"uno": one.id.encode()}


async def test_renaming_to_a_taken_name_changes_nothing(store):
    one, two = container(1, "one"), container(2, "two")
    await store.add(one)
    await store.add(two)
    with pytest.raises(Conflict, match='"/two" is already in use'):
        await store.rename(one, "two")
    assert (store.resolve("one"), store.resolve("two")) == (one, two)


async def test_a_removed_container_frees_its_name(store):
    one = container(1, "one")
    await store.add(one)
    await store.remove(one)
    with pytest.raises(NotFound):
        store.resolve("one")
    await store.add(container(2, "one"))


async def test_when_the_disk_refuses_the_name_stays_free(store, state):
    state.close()
    with pytest.raises(Exception, match="closed"):
        await store.add(container(1, "one"))
    assert store.all() == []


def test_a_status_moves_only_along_the_table():
    one = container(1, "one")
    with pytest.raises(Conflict, match="container is created and cannot become paused"):
        one.state.move(Status.PAUSED)
    assert one.state.status is Status.CREATED
    one.state.move(Status.RUNNING)
    one.state.move(Status.PAUSED)
    assert one.state.status is Status.PAUSED
