import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidParameter, NotFound, WherryError
from wherry.events import Events
from wherry.filters import Filters
from wherry.state import State
from wherry.volumes.files import populate
from wherry.volumes.record import ANONYMOUS, parse_size
from wherry.volumes.volumes import Volumes


class World:
    """One data root, and which containers use what."""

    def __init__(self, root: Path) -> None:
        self.root = root / "volumes"
        self.state = State(root / "state.db")
        self.events = Events()
        self.used: dict[str, Sequence[str]] = {}

    async def open(self) -> Volumes:
        volumes = Volumes(self.state, self.root, self.events, users=self.users)
        await volumes.start()
        return volumes

    def users(self) -> Mapping[str, Sequence[str]]:
        return self.used

    def actions(self) -> list[tuple[str, str]]:
        return [(event.action, event.actor) for event in self.events.past(0, 1 << 63)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def volumes(world: World) -> Volumes:
    return await world.open()


def filters(**fields: str) -> Filters:
    return Filters({key.replace("_not", "!"): (value,) for key, value in fields.items()})


def names(document: Mapping[str, object]) -> set[str]:
    found = document["Volumes"]
    assert isinstance(found, list)
    return {each["Name"] for each in found}


async def test_a_new_volume_has_docker_s_document_and_a_directory(world: World, volumes: Volumes) -> None:
    document = await volumes.create("data", labels={"a": "b"})
    assert set(document) == {"CreatedAt", "Driver", "Labels", "Mountpoint", "Name", "Options", "Scope"}
    assert (document["Name"], document["Driver"], document["Scope"]) == ("data", "local", "local")
    assert document["Labels"] == {"a": "b"}
    assert document["Options"] is None
    assert document["Mountpoint"] == str(world.root / "data" / "_data")
    assert Path(str(document["Mountpoint"])).is_dir()
    assert str(document["CreatedAt"]).endswith("Z")
    assert len(str(document["CreatedAt"])) == len("2026-01-02T03:04:05Z")
    assert volumes.inspect("data") == document


async def test_creating_a_volume_again_returns_it_as_it_is_and_announces_nothing(
    world: World, volumes: Volumes
) -> None:
    first = await volumes.create("data", labels={"a": "b"})
    again = await volumes.create("data", labels={"c": "d"})
    assert again == first
    assert world.actions() == [("create", "data")]


async def test_a_volume_without_a_name_is_anonymous(volumes: Volumes) -> None:
    document = await volumes.create("")
    assert len(str(document["Name"])) == 64
    assert document["Labels"] == {ANONYMOUS: ""}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a", "create a: volume name is too short, names should be at least two alphanumeric characters"),
        ("../v3", 'create ../v3: "../v3" includes invalid characters for a local volume name'),
        ("a/b", "includes invalid characters"),
        ("..", "includes invalid characters"),
        (".hidden", "includes invalid characters"),
        ("x" * 256, "too long"),
        ("new\nline", "includes invalid characters"),
    ],
)
async def test_a_bad_name_is_refused_and_leaves_nothing(world: World, volumes: Volumes, name: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match="create") as error:
        await volumes.create(name)
    assert words in error.value.message
    assert os.listdir(world.root) == []
    assert world.state.rows("volumes") == {}


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"foo": "bar"}, InvalidParameter, 'create v3: invalid option: "foo"'),
        ({"type": "tmpfs"}, InvalidParameter, 'create v3: missing required option: "device"'),
        ({"device": "/dev/x"}, InvalidParameter, 'create v3: missing required option: "type"'),
        ({"o": "bind"}, InvalidParameter, 'create v3: missing required option: "device"'),
        ({"size": "much"}, InvalidParameter, "create v3: invalid size: 'much'"),
        ({"size": "1m"}, InvalidParameter, "create v3: size 1m is too small: at least 4m"),
        ({"size": "1g", "type": "tmpfs", "device": "x"}, InvalidParameter, "for tmpfs: o=size="),
        (
            {"type": "cifs", "device": "//host:445/x"},
            InvalidParameter,
            "create v3: port not allowed in CIFS device URL, include 'port' in 'o='",
        ),
    ],
)
async def test_options_that_cannot_be_honoured_are_refused(
    world: World, volumes: Volumes, options: dict[str, str], kind: type[WherryError], words: str
) -> None:
    with pytest.raises(kind) as error:
        await volumes.create("v3", options=options)
    assert words in error.value.message
    assert world.state.rows("volumes") == {}


async def test_another_driver_is_not_found(volumes: Volumes) -> None:
    with pytest.raises(NotFound, match='plugin "nosuch" not found'):
        await volumes.create("v3", "nosuch")


@pytest.mark.parametrize(("text", "size"), [("10G", 10 << 30), ("512m", 512 << 20), ("1.5gib", 3 << 29), ("7", 7)])
def test_sizes_are_read_as_docker_reads_them(text: str, size: int) -> None:
    assert parse_size(text) == size


async def test_a_plain_volume_is_there_for_who_uses_it_and_mounts_nothing(world: World, volumes: Volumes) -> None:
    await volumes.create("data")
    before = Path("/proc/self/mountinfo").read_text()
    assert await volumes.mount("data", "one") == world.root / "data" / "_data"
    await volumes.mount("data", "one")
    await volumes.mount("data", "two")
    assert volumes.users_now("data") == ["one", "two"]
    assert Path("/proc/self/mountinfo").read_text() == before
    for user in ("one", "one", "two", "nobody"):
        await volumes.unmount("data", user)
    assert volumes.users_now("data") == []


async def test_what_is_not_there_cannot_be_mounted_and_its_end_is_no_error(volumes: Volumes) -> None:
    with pytest.raises(NotFound):
        await volumes.mount("nothing", "one")
    await volumes.unmount("nothing", "one")


async def test_a_removed_volume_is_gone_with_its_data(world: World, volumes: Volumes) -> None:
    path = await volumes.ensure("data")
    (path / "sub").mkdir()
    (path / "sub" / "file").write_text("x")
    await volumes.remove("data")
    assert os.listdir(world.root) == []
    assert world.state.rows("volumes") == {}
    with pytest.raises(NotFound, match="get data: no such volume"):
        volumes.inspect("data")
    assert world.actions()[-1] == ("destroy", "data")


async def test_a_volume_in_use_is_not_removed_even_by_force(world: World, volumes: Volumes) -> None:
    await volumes.ensure("data")
    world.used["data"] = ["f" * 64]
    for force in (False, True):
        with pytest.raises(Conflict, match=rf"remove data: volume is in use - \[{'f' * 64}\]"):
            await volumes.remove("data", force=force)
    assert volumes.path("data").is_dir()


async def test_a_volume_that_a_container_in_creation_will_use_is_not_removed(volumes: Volumes) -> None:
    await volumes.ensure("data")
    with volumes.hold("data"), pytest.raises(Conflict, match="volume is in use"):
        await volumes.remove("data")
    await volumes.remove("data")


async def test_removing_a_missing_volume_fails_unless_forced(volumes: Volumes) -> None:
    with pytest.raises(NotFound, match="get nosuch: no such volume"):
        await volumes.remove("nosuch")
    await volumes.remove("nosuch", force=True)


async def test_volumes_survive_a_restart(world: World, volumes: Volumes) -> None:
    path = await volumes.ensure("data", labels={"a": "b"})
    (path / "file").write_text("kept")
    before = volumes.inspect("data")
    again = await world.open()
    assert again.inspect("data") == before
    assert (again.path("data") / "file").read_text() == "kept"


async def test_discard_is_idempotent(world: World, volumes: Volumes) -> None:
    await volumes.ensure("data")
    await volumes.discard("data")
    await volumes.discard("data")
    assert os.listdir(world.root) == []
    assert world.actions() == [("create", "data"), ("destroy", "data")]


async def test_list_filters_select(world: World, volumes: Volumes) -> None:
    await volumes.ensure("web-data", labels={"tier": "web"})
    await volumes.ensure("db-data", labels={"tier": "db"})
    world.used["db-data"] = ["c" * 64]
    assert names(volumes.list()) == {"web-data", "db-data"}
    assert names(volumes.list(filters(name="web"))) == {"web-data"}
    assert names(volumes.list(filters(label="tier=db"))) == {"db-data"}
    assert names(volumes.list(filters(label="tier"))) == {"web-data", "db-data"}
    assert names(volumes.list(filters(dangling="true"))) == {"web-data"}
    assert names(volumes.list(filters(dangling="false"))) == {"db-data"}
    assert names(volumes.list(filters(driver="local"))) == {"web-data", "db-data"}
    assert names(volumes.list(filters(driver="other"))) == set()
    for bad in (filters(foo="x"), filters(dangling="x")):
        with pytest.raises(InvalidParameter, match="invalid filter"):
            volumes.list(bad)


async def test_prune_takes_anonymous_volumes_that_nobody_uses(world: World, volumes: Volumes) -> None:
    await volumes.ensure("named")
    loose = str((await volumes.create(""))["Name"])
    used = str((await volumes.create(""))["Name"])
    (volumes.path(loose) / "file").write_bytes(b"x" * 1000)
    world.used[used] = ["c" * 64]
    assert await volumes.prune() == {"VolumesDeleted": [loose], "SpaceReclaimed": 1000}
    assert names(volumes.list()) == {"named", used}


async def test_prune_of_all_takes_named_ones_too_and_respects_labels(volumes: Volumes) -> None:
    await volumes.ensure("keep", labels={"keep": "1"})
    await volumes.ensure("drop")
    assert (await volumes.prune(filters(all="true", label_not="keep")))["VolumesDeleted"] == ["drop"]
    assert names(volumes.list()) == {"keep"}
    with pytest.raises(InvalidParameter, match="invalid filter"):
        await volumes.prune(filters(all="x"))


async def test_start_finishes_a_removal_that_a_crash_cut_short(world: World, volumes: Volumes) -> None:
    await volumes.ensure("data")
    (world.root / "data").rename(world.root / ".removing-data-0123456789ab")
    again = await world.open()
    assert names(again.list()) == set()
    assert os.listdir(world.root) == []
    assert world.state.rows("volumes") == {}


async def test_start_keeps_a_volume_that_was_made_again_after_its_removal(world: World, volumes: Volumes) -> None:
    path = await volumes.ensure("data")
    (path / "file").write_text("new")
    (world.root / ".removing-data-0123456789ab").mkdir()
    again = await world.open()
    assert (again.path("data") / "file").read_text() == "new"
    assert os.listdir(world.root) == ["data"]


async def test_start_makes_the_directory_of_a_row_that_has_none(world: World, volumes: Volumes) -> None:
    path = await volumes.ensure("data")
    path.rmdir()
    path.parent.rmdir()
    await world.open()
    assert path.is_dir()


async def test_start_adopts_data_that_has_no_row(world: World) -> None:
    data = world.root / "orphan" / "_data"
    data.mkdir(parents=True)
    (data / "file").write_text("precious")
    volumes = await world.open()
    assert names(volumes.list()) == {"orphan"}
    assert names((await world.open()).list()) == {"orphan"}
    assert (data / "file").read_text() == "precious"


async def test_start_finishes_a_copy_that_was_complete_and_drops_one_that_was_not(
    world: World, volumes: Volumes
) -> None:
    whole, half = await volumes.ensure("whole"), await volumes.ensure("half")
    for path, kind in ((whole, "_ready"), (half, "_copy")):
        (path.parent / kind).mkdir()
        (path.parent / kind / "file").write_text("x")
    await world.open()
    assert os.listdir(whole) == ["file"]
    assert os.listdir(half) == []
    assert os.listdir(whole.parent) == os.listdir(half.parent) == ["_data"]


async def test_a_failing_state_leaves_the_volume_where_it_was(world: World, volumes: Volumes) -> None:
    path = await volumes.ensure("data")
    (path / "file").write_text("x")
    world.state.close()
    with pytest.raises(Exception):  # noqa: B017 - whatever SQLite says of a closed file
        await volumes.remove("data")
    assert volumes.get("data").name == "data"
    assert (path / "file").read_text() == "x"


async def test_filling_copies_what_the_image_has(tmp_path: Path, world: World, volumes: Volumes) -> None:
    image = tmp_path / "image"
    (image / "srv" / "www").mkdir(parents=True)
    (image / "srv" / "www" / "index.html").write_text("hello")
    (image / "data").symlink_to("/srv/www")
    path = await volumes.ensure("www")
    fill(world, volumes, "www", image, "/data")
    assert (path / "index.html").read_text() == "hello"
    assert os.listdir(path.parent) == ["_data"]


async def test_filling_leaves_a_volume_with_content_alone(tmp_path: Path, world: World, volumes: Volumes) -> None:
    (tmp_path / "image" / "data").mkdir(parents=True)
    (tmp_path / "image" / "data" / "from-image").write_text("x")
    path = await volumes.ensure("data")
    (path / "mine").write_text("y")
    fill(world, volumes, "data", tmp_path / "image", "/data")
    assert os.listdir(path) == ["mine"]


async def test_filling_without_such_a_path_in_the_image_does_nothing(
    tmp_path: Path, world: World, volumes: Volumes
) -> None:
    (tmp_path / "image").mkdir()
    path = await volumes.ensure("data")
    fill(world, volumes, "data", tmp_path / "image", "/data/deep")
    assert os.listdir(path) == []


async def test_filling_over_a_file_is_refused(tmp_path: Path, world: World, volumes: Volumes) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "data").write_text("x")
    await volumes.ensure("data")
    with pytest.raises(InvalidParameter, match="cannot mount volume over existing file, file exists /data"):
        fill(world, volumes, "data", tmp_path / "image", "/data")


async def test_filling_never_follows_a_link_out_of_the_image(tmp_path: Path, world: World, volumes: Volumes) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("host's")
    image = tmp_path / "image"
    (image / "inner").mkdir(parents=True)
    (image / "data").symlink_to(f"../../../../../../..{secret}")
    (image / "inner" / "link").symlink_to(secret)
    path = await volumes.ensure("data")
    fill(world, volumes, "data", image, "/data")
    assert os.listdir(path) == []
    fill(world, volumes, "data", image, "/inner")
    assert os.listdir(path) == ["link"]
    assert os.readlink(path / "link") == str(secret)


def fill(world: World, volumes: Volumes, name: str, image: Path, destination: str) -> None:
    """What `Volumes.fill` does once the image is mounted, which takes privileges."""
    root = os.open(image, os.O_RDONLY | os.O_DIRECTORY)
    try:
        populate(volumes.path(name), world.root / name, root, destination)
    finally:
        os.close(root)


async def test_disk_usage_counts_users_and_bytes(world: World, volumes: Volumes) -> None:
    path = await volumes.ensure("data")
    (path / "a").write_bytes(b"x" * 10)
    os.link(path / "a", path / "b")
    world.used["data"] = ["c" * 64]
    (usage,) = await volumes.disk_usage()
    assert usage["UsageData"] == {"RefCount": 1, "Size": 10}


async def test_mounting_is_told_with_docker_s_attributes(world: World, volumes: Volumes) -> None:
    await volumes.ensure("data")
    volumes.mounted("data", "c" * 64, destination="/d", rw=False)
    volumes.unmounted("data", "c" * 64)
    mount, unmount = world.events.past(0, 1 << 63)[-2:]
    assert mount.attributes == {
        "container": "c" * 64,
        "destination": "/d",
        "driver": "local",
        "propagation": "",
        "read/write": "false",
    }
    assert unmount.attributes == {"container": "c" * 64, "driver": "local"}
