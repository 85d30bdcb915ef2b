"""What -v, --mount, --tmpfs, --volumes-from and VOLUME come to."""

import pytest

from wherry.containers.making.mounts import parse_bind, resolve
from wherry.containers.making.sources import prepare_binds
from wherry.containers.record import MountPoint
from wherry.errors import InvalidParameter, NotFound
from wherry.spec.engine import BindOptions, HostConfig, Mount, TmpfsOptions, VolumeOptions


def none_there(name: str) -> tuple[MountPoint, ...]:
    raise NotFound(f"No such container: {name}")


def test_a_bind_keeps_source_destination_and_mode():
    point = parse_bind("/srv/../data:/in//side/:ro,rslave")
    assert (point.type, point.source, point.destination) == ("bind", "/data", "/in/side")
    assert (point.rw, point.propagation, point.mode) == (False, "rslave", "ro,rslave")


def test_a_name_is_a_volume_and_a_lone_path_an_anonymous_one():
    named, lone = parse_bind("data:/x:nocopy"), parse_bind("/x")
    assert (named.type, named.name, named.no_copy, named.anonymous) == ("volume", "data", True, False)
    assert (lone.type, lone.destination, lone.anonymous) == ("volume", "/x", True)
    assert len(lone.name) == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid volume specification"),
        ("a:b", "must be absolute"),
        ("/a:/", "destination can't be '/'"),
        ("/a:/b:rx", "invalid mode: rx"),
        ("/a:/b:ro,rw", "invalid mode"),
        ("/a:/b:ro:x", "invalid volume specification"),
        ("../a:/b", "invalid characters for a local volume name"),
        ("data:/b:rshared", "'data:/b:rshared': .*\"volume\": field BindOptions must not be specified"),
    ],
)
def test_a_bad_bind_is_refused_in_words(text, words):
    with pytest.raises(InvalidParameter, match=words):
        parse_bind(text)


def test_the_same_destination_twice_is_refused():
    host = HostConfig(binds=["/a:/x"], mounts=[Mount(type="bind", source="/b", target="/x/")])
    with pytest.raises(InvalidParameter, match="Duplicate mount point: /x"):
        resolve(host, image_volumes=[], others=none_there)


def test_explicit_mounts_win_over_inherited_ones_and_those_over_the_image():
    inherited = MountPoint(type="volume", source="/v/old/_data", name="old", destination="/data", anonymous=True)
    host = HostConfig(binds=["/host:/code"], volumes_from=["other:ro"])
    points = resolve(host, image_volumes=["/data", "/code", "/cache"], others=lambda _: (inherited,))
    by_path = {point.destination: point for point in points}
    assert by_path["/code"].source == "/host"
    assert (by_path["/data"].name, by_path["/data"].rw, by_path["/data"].anonymous) == ("old", False, False)
    assert by_path["/cache"].anonymous
    assert [point.destination for point in points] == sorted(by_path)


def test_volumes_from_an_unknown_container_is_refused():
    with pytest.raises(NotFound, match="No such container: gone"):
        resolve(HostConfig(volumes_from=["gone"]), image_volumes=[], others=none_there)


def test_mounts_of_each_type_carry_their_options():
    host = HostConfig(
        mounts=[
            Mount(type="bind", source="/a", target="/a", read_only=True, bind_options=BindOptions(non_recursive=True)),
            Mount(type="volume", target="/v", volume_options=VolumeOptions(no_copy=True)),
            Mount(type="tmpfs", target="/t", tmpfs_options=TmpfsOptions(size_bytes=4096, mode=0o1777)),
        ],
        tmpfs={"/run": "rw,size=64k"},
    )
    bind, run, tmpfs, volume = sorted(
        resolve(host, image_volumes=[], others=none_there), key=lambda point: point.destination
    )
    assert (bind.rw, bind.recursive, bind.must_exist) == (False, False, True)
    assert run.options == ("rw", "size=64k")
    assert tmpfs.options == ("size=4096", "mode=1777")
    assert (volume.anonymous, volume.no_copy) == (True, True)


@pytest.mark.parametrize(
    ("mount", "kind", "words"),
    [
        (Mount(type="bind", source="/a"), InvalidParameter, "Target must not be empty"),
        (Mount(type="bind", target="/a"), InvalidParameter, "Source must not be empty"),
        (Mount(type="bind", source="a", target="/a"), InvalidParameter, "must be absolute"),
        (Mount(type="tmpfs", source="a", target="/a"), InvalidParameter, "Source must not be specified"),
        (Mount(type="volume", source="a/b", target="/a"), InvalidParameter, 'create a/b: "a/b" includes invalid'),
        (Mount(type="bnd", source="/a", target="/a"), InvalidParameter, 'for type "bnd": mount type unknown'),
        (Mount(type="cluster", source="a", target="/a"), InvalidParameter, 'for type "cluster": mount type unknown'),
    ],
)
def test_a_bad_mount_is_refused_in_words(mount, kind, words):
    with pytest.raises(kind, match=words):
        resolve(HostConfig(mounts=[mount]), image_volumes=[], others=none_there)


def test_a_missing_host_directory_is_made_for_v_and_refused_for_mount(tmp_path):
    wanted = tmp_path / "a" / "b"
    prepare_binds([MountPoint(type="bind", source=str(wanted), destination="/x")])
    assert wanted.is_dir()
    missing = str(tmp_path / "c")
    with pytest.raises(InvalidParameter, match=f"bind source path does not exist: {missing}"):
        prepare_binds([MountPoint(type="bind", source=missing, destination="/x", must_exist=True)])
