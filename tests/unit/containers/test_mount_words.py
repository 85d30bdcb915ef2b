"""Modes and keys of mounts, and what is said of those that cannot be: Docker's words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.containers.making.binds import as_mount, modes
from wherry.containers.making.mounts import over_daemon, parse_bind, point_of, resolve, with_caller
from wherry.containers.making.sources import check_proc, doubts, nearest, prepare_binds, propagations
from wherry.containers.record import MountPoint
from wherry.errors import Failed, InvalidParameter
from wherry.kernel import mountinfo
from wherry.spec.engine import (
    BindOptions,
    DriverConfig,
    HostConfig,
    ImageOptions,
    Mount,
    TmpfsOptions,
    VolumeOptions,
)

BIND = 'invalid mount config for type "bind": '
VOLUME = 'invalid mount config for type "volume": '
IMAGE = 'invalid mount config for type "image": '


def bind(path: str, destination: str = "/x", **more: object) -> MountPoint:
    return MountPoint(type="bind", source=path, destination=destination, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/a:/b:ro,foo", "invalid mode: ro,foo"),
        ("/a:/b:z,Z", "invalid mode: z,Z"),
        ("/a:/b:cached,delegated", "invalid mode: cached,delegated"),
        ("/a:/b:ro,ro", "invalid mode: ro,ro"),
        ("/a:/b:ro,", "invalid mode: ro,"),
        ("data:ro", "invalid volume specification: 'data:ro'"),
        (
            "/a:/b:nocopy",
            f"invalid volume specification: '/a:/b:nocopy': {BIND}field VolumeOptions must not be specified",
        ),
        (
            "a:/b:shared",
            f"invalid volume specification: 'a:/b:shared': {VOLUME}field BindOptions must not be specified",
        ),
        ("/a:/", f"invalid volume specification: '/a:/': {BIND}invalid specification: destination can't be '/'"),
        ("/a:b", f"invalid volume specification: '/a:b': {BIND}invalid mount path: 'b' mount path must be absolute"),
        ("a::ro", f"invalid volume specification: 'a::ro': {VOLUME}field Target must not be empty"),
        (":/b", "invalid volume specification: ':/b'"),
    ],
)
def test_a_bad_bind_is_refused_word_by_word(text: str, message: str):
    with pytest.raises(InvalidParameter) as caught:
        parse_bind(text)
    assert caught.value.message == message


@pytest.mark.parametrize("mode", ["z", "Z", "cached", "delegated", "consistent", "ro,z,cached", "rw,Z,rslave"])
def test_modes_that_change_nothing_here_are_kept_as_typed(mode: str):
    point = parse_bind(f"/a:/b:{mode}")
    assert (point.mode, point.rw) == (mode, "ro" not in mode.split(","))


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (Mount(type="npipe", source="x", target="/x"), 'invalid mount config for type "npipe": mount type unknown'),
        (Mount(type="bind", source="/a", target="/"), f"{BIND}invalid specification: destination can't be '/'"),
        (
            Mount(type="bind", source="/a", target="/x", bind_options=BindOptions(propagation="bad")),
            f"{BIND}invalid propagation mode: bad",
        ),
        (
            Mount(type="bind", source="/a", target="/x", volume_options=VolumeOptions(no_copy=True)),
            f"{BIND}field VolumeOptions must not be specified",
        ),
        (
            Mount(
                type="bind",
                source="/a",
                target="/x",
                bind_options=BindOptions(read_only_non_recursive=True, read_only_force_recursive=True),
            ),
            "mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive",
        ),
        (
            Mount(type="volume", source="v", target="/x", volume_options=VolumeOptions(subpath="../x")),
            f"{VOLUME}subpath must be a relative path within the volume",
        ),
        (
            Mount(type="volume", source="v", target="/x", volume_options=VolumeOptions(subpath="/x")),
            f"{VOLUME}subpath must be a relative path within the volume",
        ),
        (
            Mount(type="volume", target="/x", volume_options=VolumeOptions(subpath="x")),
            f"{VOLUME}must not set Subpath when using anonymous volumes",
        ),
        (
            Mount(type="volume", target="/x", read_only=True),
            f"{VOLUME}must not set ReadOnly mode when using anonymous volumes",
        ),
        (
            Mount(type="volume", source="v", target="/x", bind_options=BindOptions()),
            f"{VOLUME}field BindOptions must not be specified",
        ),
        (Mount(type="image", target="/x"), f"{IMAGE}field Source must not be empty"),
        (
            Mount(type="image", source="i", target="/x", image_options=ImageOptions(subpath="a/../../b")),
            f"{IMAGE}subpath must be a relative path within the image",
        ),
        (
            Mount(type="tmpfs", target="/x", tmpfs_options=TmpfsOptions(options=[["size", "1"]])),
            'invalid mount config for type "tmpfs": invalid option: size',
        ),
        (
            Mount(type="tmpfs", target="/x", tmpfs_options=TmpfsOptions(options=[[]])),
            'invalid mount config for type "tmpfs": invalid option array length',
        ),
    ],
)
def test_a_bad_mount_is_refused_word_by_word(mount: Mount, message: str):
    with pytest.raises(InvalidParameter) as caught:
        point_of(mount)
    assert caught.value.message == message


def nobody(name: str) -> tuple[MountPoint, ...]:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("tmpfs", "message"),
    [
        ({"/": ""}, "invalid specification: destination can't be '/'"),
        ({"x": ""}, "invalid mount path: 'x' mount path must be absolute"),
        ({"/x": "size=1m,foo"}, 'invalid tmpfs option "foo"'),
        ({"/x": "foo=1"}, 'invalid tmpfs option "foo=1"'),
        ({"/x": "size"}, 'invalid tmpfs option "size"'),
    ],
)
def test_a_bad_tmpfs_is_refused_word_by_word(tmpfs: dict[str, str], message: str):
    with pytest.raises(InvalidParameter) as caught:
        resolve(HostConfig(tmpfs=tmpfs), image_volumes=[], others=nobody)
    assert caught.value.message == message


def test_the_keys_of_each_type_are_kept():
    deep = point_of(
        Mount(
            type="bind",
            source="/a/",
            target="/x",
            read_only=True,
            bind_options=BindOptions(read_only_force_recursive=True, create_mountpoint=True, propagation="rshared"),
        )
    )
    assert (deep.deep_read_only, deep.must_exist, deep.propagation, deep.source) == (True, False, "rshared", "/a")
    flat = Mount(type="bind", source="/a", target="/x", bind_options=BindOptions(read_only_non_recursive=True))
    assert point_of(flat).flat_read_only
    part = VolumeOptions(subpath="a/./b", no_copy=True, driver_config=DriverConfig(name="local"))
    volume = point_of(Mount(type="volume", source="vol", target="/x", volume_options=part))
    assert (volume.subpath, volume.no_copy, volume.driver, volume.anonymous) == ("a/./b", True, "local", False)
    image = point_of(Mount(type="image", source="i", target="/x", image_options=ImageOptions(subpath="usr")))
    assert (image.rw, image.subpath, image.source) == (False, "usr", "i")
    tmpfs = Mount(type="tmpfs", target="/x", tmpfs_options=TmpfsOptions(options=[["exec"]], mode=0o700))
    assert point_of(tmpfs).options == ("mode=700", "exec")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "volumes-from specification cannot be an empty string"),
        ("c:rslave", "invalid mode: rslave"),
        ("c:nocopy", "invalid mode: nocopy"),
        ("c:idmap", "invalid mode: idmap"),
        ("c:ro,foo", "invalid mode: ro,foo"),
    ],
)
def test_a_bad_volumes_from_is_refused_word_by_word(text: str, message: str):
    with pytest.raises(InvalidParameter) as caught:
        resolve(HostConfig(volumes_from=[text]), image_volumes=[], others=nobody)
    assert caught.value.message == message


@pytest.mark.parametrize(("mode", "writable"), [("ro", False), ("ro,z", False), ("z", True), ("rw", True)])
def test_what_comes_from_another_container_keeps_its_kind(mode: str, writable: bool):
    given = bind("/host", propagation="rslave", id_map="caller=1-1")
    hidden = MountPoint(type="tmpfs", source="", destination="/t")
    (point,) = resolve(HostConfig(volumes_from=[f"c:{mode}"]), image_volumes=[], others=lambda _: [given, hidden])
    assert (point.rw, point.propagation, point.id_map) == (writable, "rslave", "caller=1-1")


@given(st.text(alphabet="/ab:ro,zidmap=1-;nocpyrslave\\ \n", max_size=40))
def test_any_text_is_a_bind_or_an_error_in_words(text: str):
    try:
        point = parse_bind(text)
    except InvalidParameter:
        return
    assert point.destination.startswith("/")
    assert ".." not in point.destination.split("/")


# idmap


def test_the_caller_is_put_in_wherever_only_the_word_stands():
    host = HostConfig(
        binds=["/a:/b:ro,idmap", "/c:/d", "/e:/f:idmap=caller=1-1", "v:/idmap"],
        mounts=[
            Mount(type="bind", source="/a", target="/m", bind_options=BindOptions(id_map="caller")),
            Mount(type="bind", source="/a", target="/n", bind_options=BindOptions(id_map="uids=0-1-1;gids=0-1-1")),
            Mount(type="tmpfs", target="/t"),
        ],
    )
    filled = with_caller(host, "caller=7-8")
    assert filled.binds == ["/a:/b:ro,idmap=caller=7-8", "/c:/d", "/e:/f:idmap=caller=1-1", "v:/idmap"]
    assert filled.mounts is not None
    assert [each.bind_options.id_map if each.bind_options else None for each in filled.mounts] == [
        "caller=7-8",
        "uids=0-1-1;gids=0-1-1",
        None,
    ]
    assert parse_bind(filled.binds[0]).id_map == "caller=7-8"


def test_a_caller_nobody_knows_is_an_error_that_says_what_to_do():
    with pytest.raises(InvalidParameter, match="it is not known who calls: name the ids, as in idmap=uids=0-1000-1"):
        parse_bind("/a:/b:idmap")
    assert modes("idmap") == {"idmap": "caller"}
    assert as_mount("/a:/b:idmap")[0].bind_options == BindOptions(id_map="caller", create_mountpoint=True)


# what is on the host


def test_a_missing_source_names_what_was_meant(tmp_path: Path):
    (tmp_path / "projects/site").mkdir(parents=True)
    wrong = f"{tmp_path}/projcts/site"
    with pytest.raises(InvalidParameter) as caught:
        prepare_binds([bind(wrong, must_exist=True)])
    right = f"{tmp_path}/projects/site"
    assert caught.value.message == f"{BIND}bind source path does not exist: {wrong} (did you mean {right}?)"
    assert doubts([bind(wrong)]) == [
        f"{wrong} does not exist and will be made as an empty directory: did you mean {right}?"
    ]
    assert not Path(wrong).exists()


def test_nothing_is_suggested_where_nothing_is_like_it(tmp_path: Path):
    (tmp_path / "projects").mkdir()
    (tmp_path / "file").touch()
    for missing in ("wholly/different", "projcts/site", "file/below", "x" * 300):
        assert nearest(f"{tmp_path}/{missing}") == ""
    assert doubts([bind(f"{tmp_path}/new"), bind(str(tmp_path)), bind(f"{tmp_path}/projct", must_exist=True)]) == []


def test_a_source_that_cannot_be_made_says_why(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidParameter, match=f"mount source path '{tmp_path}/file/x': mkdir .*: not a directory"):
        prepare_binds([bind(f"{tmp_path}/file/x")])


@pytest.mark.parametrize(
    ("point", "why"),
    [
        (bind("/tmp", "/proc"), "it is not of type proc"),
        (bind("/tmp", "/proc/x"), "it is inside /proc"),
        (MountPoint(type="tmpfs", source="", destination="/proc/sys"), "it is inside /proc"),
    ],
)
def test_what_would_cover_proc_is_refused(point: MountPoint, why: str):
    with pytest.raises(Failed) as caught:
        check_proc([point], "crun")
    source, target = point.source or "tmpfs", point.destination
    assert caught.value.message == (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: crun create "
        "failed: unable to start container process: error during container init: error mounting "
        f'"{source}" to rootfs at "{target}": "{target}" cannot be mounted because {why}: unknown'
    )


def test_the_hosts_proc_and_what_lxcfs_gives_may_be_mounted():
    check_proc([bind("/proc", "/proc"), bind("/tmp/x", "/proc/meminfo"), bind("/tmp", "/processes")], "crun")


def test_binds_around_the_daemons_directory_get_what_is_mounted_later():
    root = Path("/var/lib/engine")
    host = HostConfig(
        binds=["/var:/a", "/var:/said:private", "/srv:/far"],
        mounts=[Mount(type="bind", source="/var/lib/engine/x", target="/in")],
    )
    points = resolve(host, image_volumes=[], others=nobody)
    found = {point.destination: point.propagation for point in over_daemon(points, host, root)}
    assert found == {"/a": "rslave", "/said": "private", "/far": "rprivate", "/in": "rslave"}


def test_private_sources_need_no_look_at_the_mounts():
    assert propagations([bind("/nowhere", propagation="rprivate")], Path("/data")) == {"/x": "rprivate"}


def test_the_mount_of_a_path_is_the_deepest_and_of_two_at_one_place_the_later():
    def entry(number: int, point: str) -> mountinfo.Entry:
        return mountinfo.Entry(id=number, point=point, shared=False, slave=False, fstype="ext4")

    table = [entry(1, "/"), entry(2, "/a"), entry(3, "/a/b"), entry(4, "/a/b"), entry(5, "/ab")]
    found = {path: mountinfo.mount_of(path, table) for path in ("/", "/x", "/a", "/a/b/c", "/abc", "/ab")}
    assert {path: entry.id if entry else 0 for path, entry in found.items()} == {
        "/": 1,
        "/x": 1,
        "/a": 2,
        "/a/b/c": 4,
        "/abc": 1,
        "/ab": 5,
    }
