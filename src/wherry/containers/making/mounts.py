"""From what was asked for (-v, --mount, --tmpfs, --volumes-from, VOLUME) to mount points.

`resolve` is pure: it reads nothing from disk and makes nothing; the names of anonymous volumes are drawn here so that
the container's first record already says what must be removed when create fails half-way. What of it is on the host is
looked at in `sources`.
"""

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from wherry.containers.making import binds
from wherry.containers.record import MountPoint
from wherry.errors import InvalidParameter
from wherry.ids import generate
from wherry.runtime import id_map
from wherry.spec.engine import BindOptions, HostConfig, Mount, VolumeOptions
from wherry.volumes.record import check_name

_DEFAULT_PROPAGATION = "rprivate"
_TMPFS_VALUES = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})
_TMPFS_FLAGS = frozenset(
    "defaults ro rw suid nosuid dev nodev exec noexec sync async dirsync mand nomand atime noatime diratime nodiratime "
    "relatime norelatime strictatime nostrictatime private rprivate shared rshared slave rslave unbindable "
    "runbindable".split()
)


def resolve(
    host: HostConfig, *, image_volumes: Iterable[str], others: Callable[[str], Sequence[MountPoint]]
) -> tuple[MountPoint, ...]:
    """All mount points of a new container, by destination. `others` gives the mount points of another container.

    Explicit ones win over --volumes-from, which wins over the image's VOLUMEs. Raises InvalidParameter in Docker's
    words; a destination named twice is one of its causes.
    """
    explicit: dict[str, MountPoint] = {}
    for point in _explicit(host):
        if point.destination in explicit:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        explicit[point.destination] = point
    merged: dict[str, MountPoint] = {}
    for given in host.volumes_from or []:
        name, read_only = binds.inherited(given)
        for point in others(name):
            if point.type != "tmpfs":
                merged[point.destination] = replace(point, rw=point.rw and not read_only, anonymous=False)
    for destination in image_volumes:
        path = _clean(destination, f"invalid volume specification: '{destination}': ")
        if path not in explicit and path not in merged:
            merged[path] = _anonymous(path)
    merged.update(explicit)
    return tuple(merged[path] for path in sorted(merged))


def _explicit(host: HostConfig) -> Iterable[MountPoint]:
    for bind in host.binds or []:
        yield parse_bind(bind, driver=host.volume_driver)
    for mount in host.mounts or []:
        yield point_of(mount)
    for destination, options in (host.tmpfs or {}).items():
        yield _from_tmpfs(destination, options)


def with_caller(host: HostConfig, caller: str) -> HostConfig:
    """`caller`, as runtime.id_map has it, put in wherever a bind only says that the caller is meant."""

    def filled(mount: Mount) -> Mount:
        options = mount.bind_options
        if options is None or options.id_map != id_map.CALLER:
            return mount
        return msgspec.structs.replace(mount, bind_options=msgspec.structs.replace(options, id_map=caller))

    return msgspec.structs.replace(
        host,
        binds=[binds.with_caller(each, caller) for each in host.binds] if host.binds else host.binds,
        mounts=[filled(each) for each in host.mounts] if host.mounts else host.mounts,
    )


def parse_bind(text: str, *, driver: str = "") -> MountPoint:
    """One `-v`."""
    mount, mode = binds.as_mount(text, driver=driver)
    try:
        point = point_of(mount)
    except InvalidParameter as exc:
        if exc.message.startswith(("create ", "invalid idmap")):
            raise
        raise InvalidParameter(f"invalid volume specification: '{text}': {exc.message}") from exc
    return replace(point, mode=mode or ("" if point.anonymous else point.mode), must_exist=False)


def point_of(mount: Mount) -> MountPoint:
    """One `--mount`; of an image its ID and layers are yet to be filled in. Raises InvalidParameter."""
    where = f'invalid mount config for type "{mount.type}": '
    if not mount.target:
        raise InvalidParameter(f"{where}field Target must not be empty")
    destination = _clean(mount.target, where)
    match mount.type:
        case "bind":
            return _from_bind(mount, destination, where)
        case "volume":
            return _from_volume(mount, destination, where)
        case "tmpfs":
            return _from_tmpfs_mount(mount, destination, where)
        case "image":
            return _from_image(mount, destination, where)
        case _:  # cluster and npipe, too: swarms and Windows have them
            raise InvalidParameter(f"{where}mount type unknown")


def _from_bind(mount: Mount, destination: str, where: str) -> MountPoint:
    if not mount.source:
        raise InvalidParameter(f"{where}field Source must not be empty")
    options = mount.bind_options or BindOptions()
    if options.propagation and options.propagation not in binds.PROPAGATIONS:
        raise InvalidParameter(f"{where}invalid propagation mode: {options.propagation}")
    _refuse_others(mount, where, volume=True, image=True, tmpfs=True)
    if not mount.source.startswith("/"):
        raise InvalidParameter(f"{where}invalid mount path: '{mount.source}' mount path must be absolute")
    if options.read_only_non_recursive and options.read_only_force_recursive:
        raise InvalidParameter("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
    if options.id_map:
        id_map.parse(options.id_map)
    return MountPoint(
        type="bind",
        source=posixpath.normpath(mount.source).replace("//", "/"),
        destination=destination,
        rw=not mount.read_only,
        propagation=options.propagation or _DEFAULT_PROPAGATION,
        recursive=not options.non_recursive,
        must_exist=not options.create_mountpoint,
        flat_read_only=options.read_only_non_recursive,
        deep_read_only=options.read_only_force_recursive,
        id_map=options.id_map,
    )


def _from_volume(mount: Mount, destination: str, where: str) -> MountPoint:
    _refuse_others(mount, where, bind=True, image=True, tmpfs=True)
    options = mount.volume_options or VolumeOptions()
    if options.subpath:
        if not mount.source:
            raise InvalidParameter(f"{where}must not set Subpath when using anonymous volumes")
        _check_subpath(options.subpath, where, "volume")
    if not mount.source and mount.read_only:
        raise InvalidParameter(f"{where}must not set ReadOnly mode when using anonymous volumes")
    if mount.source:
        check_name(mount.source)
    return MountPoint(
        type="volume",
        source="",
        name=mount.source or generate(),
        driver=(options.driver_config.name if options.driver_config else "") or "local",
        destination=destination,
        mode="z",
        rw=not mount.read_only,
        anonymous=not mount.source,
        no_copy=options.no_copy,
        subpath=options.subpath,
    )


def _from_image(mount: Mount, destination: str, where: str) -> MountPoint:
    _refuse_others(mount, where, bind=True, volume=True, tmpfs=True)
    if not mount.source:
        raise InvalidParameter(f"{where}field Source must not be empty")
    subpath = mount.image_options.subpath if mount.image_options else ""
    if subpath:
        _check_subpath(subpath, where, "image")
    return MountPoint(
        type="image",
        source=mount.source,
        destination=destination,
        rw=False,
        propagation=_DEFAULT_PROPAGATION,
        subpath=subpath,
    )


def _refuse_others(
    mount: Mount, where: str, *, bind: bool = False, volume: bool = False, image: bool = False, tmpfs: bool = False
) -> None:
    """Options that belong to another type of mount."""
    for refused, name, given in (
        (bind, "BindOptions", mount.bind_options),
        (volume, "VolumeOptions", mount.volume_options),
        (image, "ImageOptions", mount.image_options),
        (tmpfs, "TmpfsOptions", mount.tmpfs_options),
    ):
        if refused and given is not None:
            raise InvalidParameter(f"{where}field {name} must not be specified")


def _check_subpath(path: str, where: str, kind: str) -> None:
    clean = posixpath.normpath(path)
    if clean.startswith(("/", "../")) or clean == "..":
        raise InvalidParameter(f"{where}subpath must be a relative path within the {kind}")


def _from_tmpfs_mount(mount: Mount, destination: str, where: str) -> MountPoint:
    _refuse_others(mount, where, bind=True, volume=True, image=True)
    if mount.source:
        raise InvalidParameter(f"{where}field Source must not be specified")
    given = mount.tmpfs_options
    options = []
    if given is not None:
        if given.size_bytes:
            options.append(f"size={given.size_bytes}")
        if given.mode:
            options.append(f"mode={given.mode:o}")
        for each in given.options or []:
            if not 1 <= len(each) <= 2:
                raise InvalidParameter(f"{where}invalid option array length")
            if each[0] not in ("exec", "noexec"):
                raise InvalidParameter(f"{where}invalid option: {each[0]}")
            options.append("=".join(each))
    return MountPoint(type="tmpfs", source="", destination=destination, rw=not mount.read_only, options=tuple(options))


def _from_tmpfs(destination: str, text: str) -> MountPoint:
    """One `--tmpfs`."""
    options = tuple(option for option in text.split(",") if option)
    for option in options:
        key, equals, _ = option.partition("=")
        if key not in (_TMPFS_VALUES if equals else _TMPFS_FLAGS):
            raise InvalidParameter(f'invalid tmpfs option "{option}"')
    return MountPoint(
        type="tmpfs",
        source="",
        destination=_clean(destination, ""),
        mode=text,
        rw="ro" not in options,
        options=options,
    )


def _anonymous(destination: str) -> MountPoint:
    return MountPoint(
        type="volume", source="", name=generate(), driver="local", destination=destination, anonymous=True
    )


def _clean(path: str, where: str) -> str:
    """The destination `path` as it is kept; `where` begins the error."""
    clean = posixpath.normpath(path).replace("//", "/")
    if clean == "/":
        raise InvalidParameter(f"{where}invalid specification: destination can't be '/'")
    if not path.startswith("/"):
        raise InvalidParameter(f"{where}invalid mount path: '{path}' mount path must be absolute")
    return clean


def over_daemon(points: Iterable[MountPoint], host: HostConfig, data_root: Path) -> tuple[MountPoint, ...]:
    """Binds that show the daemon's own directory get what is mounted there later, and give nothing back, as in Docker:
    unless the request says how."""
    said = {each.target for each in host.mounts or [] if each.bind_options and each.bind_options.propagation}
    said |= {parse_bind(each).destination for each in host.binds or [] if _says_propagation(each)}
    return tuple(
        replace(point, propagation="rslave")
        if point.type == "bind" and point.destination not in said and is_around(point.source, data_root)
        else point
        for point in points
    )


def _says_propagation(bind: str) -> bool:
    return "propagation" in (binds.modes(bind.rpartition(":")[2]) or {})


def is_around(source: str, data_root: Path) -> bool:
    """The path is the daemon's directory, in it, or above it."""
    path = Path(source)
    return data_root.is_relative_to(path) or path.is_relative_to(data_root)
