"""From what was asked for (-v, --mount, --tmpfs, --volumes-from, VOLUME) to mount points, and from those to the spec.

`resolve` is pure: it reads nothing from disk and makes nothing; the names of anonymous volumes are drawn here so that
the container's first record already says what must be removed when create fails half-way.
"""

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from wherry.containers.record import MountPoint
from wherry.errors import InvalidParameter, NotSupported
from wherry.ids import generate, is_name
from wherry.spec.engine import HostConfig, Mount

_PROPAGATIONS = frozenset({"private", "rprivate", "slave", "rslave", "shared", "rshared"})
_MODES = frozenset({"ro", "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated", *_PROPAGATIONS})


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
        for point in _inherited(given, others):
            merged[point.destination] = point
    for destination in image_volumes:
        path = _absolute(destination, destination)
        if path not in explicit and path not in merged:
            merged[path] = _anonymous(path)
    merged.update(explicit)
    return tuple(merged[path] for path in sorted(merged))


def _explicit(host: HostConfig) -> Iterable[MountPoint]:
    for bind in host.binds or []:
        yield parse_bind(bind, driver=host.volume_driver)
    for mount in host.mounts or []:
        yield _from_mount(mount)
    for destination, options in (host.tmpfs or {}).items():
        yield MountPoint(
            type="tmpfs",
            source="",
            destination=_absolute(destination, destination),
            mode=options,
            rw="ro" not in options.split(","),
            options=tuple(option for option in options.split(",") if option),
        )


def parse_bind(text: str, *, driver: str = "") -> MountPoint:
    """One `-v`: `/host:/path[:mode]`, `name:/path[:mode]` or `/path`."""
    parts = text.split(":")
    if not text or len(parts) > 3 or not all(parts):
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return _anonymous(_absolute(parts[0], text))
    source, destination = parts[0], _absolute(parts[1], text)
    mode = parts[2] if len(parts) == 3 else ""
    flags = [flag for flag in mode.split(",") if flag]
    if bad := next((flag for flag in flags if flag not in _MODES), None):
        raise InvalidParameter(f"invalid mode: {bad}")
    if "ro" in flags and "rw" in flags:
        raise InvalidParameter(f"invalid mode: {mode}")
    propagation = next((flag for flag in flags if flag in _PROPAGATIONS), "")
    if source.startswith("/"):
        return MountPoint(
            type="bind",
            source=posixpath.normpath(source),
            destination=destination,
            mode=mode,
            rw="ro" not in flags,
            propagation=propagation or "rprivate",
        )
    if not is_name(source):
        raise InvalidParameter(
            f'create {source}: "{source}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
        )
    if propagation:
        raise InvalidParameter(f"invalid volume specification: '{text}': propagation is for bind mounts only")
    return MountPoint(
        type="volume",
        source="",
        name=source,
        driver=driver or "local",
        destination=destination,
        mode=mode or "z",
        rw="ro" not in flags,
        no_copy="nocopy" in flags,
    )


def _from_mount(mount: Mount) -> MountPoint:
    where = f'invalid mount config for type "{mount.type}"'
    if not mount.target:
        raise InvalidParameter(f"{where}: field Target must not be empty")
    destination = _absolute(mount.target, mount.target)
    match mount.type:
        case "bind":
            return _from_bind_mount(mount, destination, where)
        case "volume":
            return _from_volume_mount(mount, destination, where)
        case "tmpfs":
            if mount.source:
                raise InvalidParameter(f"{where}: field Source must not be specified")
            return MountPoint(
                type="tmpfs", source="", destination=destination, rw=not mount.read_only, options=_tmpfs_options(mount)
            )
        case "image" | "cluster" | "npipe":
            raise NotSupported(f"{where}: mounts of this type are not supported by this engine")
        case _:
            raise InvalidParameter(f'mount type unknown: "{mount.type}"')


def _from_bind_mount(mount: Mount, destination: str, where: str) -> MountPoint:
    if not mount.source:
        raise InvalidParameter(f"{where}: field Source must not be empty")
    if not mount.source.startswith("/"):
        raise InvalidParameter(f"{where}: invalid mount path: '{mount.source}' mount path must be absolute")
    options = mount.bind_options
    if options is not None and options.propagation and options.propagation not in _PROPAGATIONS:
        raise InvalidParameter(f"{where}: invalid propagation mode: {options.propagation}")
    return MountPoint(
        type="bind",
        source=posixpath.normpath(mount.source),
        destination=destination,
        rw=not mount.read_only,
        propagation=(options.propagation if options else "") or "rprivate",
        recursive=not (options is not None and options.non_recursive),
        must_exist=not (options is not None and options.create_mountpoint),
    )


def _from_volume_mount(mount: Mount, destination: str, where: str) -> MountPoint:
    options = mount.volume_options
    if options is not None and options.subpath:
        raise NotSupported(f"{where}: VolumeOptions.Subpath is not supported by this engine")
    if not mount.source:
        point = _anonymous(destination)
    elif is_name(mount.source):
        point = MountPoint(type="volume", source="", name=mount.source, driver="local", destination=destination)
    else:
        raise InvalidParameter(f"{where}: invalid volume name: {mount.source}")
    driver = options.driver_config.name if options and options.driver_config else ""
    return replace(
        point,
        driver=driver or "local",
        mode="z",
        rw=not mount.read_only,
        no_copy=bool(options and options.no_copy),
    )


def _tmpfs_options(mount: Mount) -> tuple[str, ...]:
    given = mount.tmpfs_options
    if given is None:
        return ()
    options = [f"size={given.size_bytes}"] if given.size_bytes else []
    if given.mode:
        options.append(f"mode={given.mode:o}")
    options.extend("=".join(pair) for pair in given.options or [])
    return tuple(options)


def _inherited(given: str, others: Callable[[str], Sequence[MountPoint]]) -> Iterable[MountPoint]:
    name, _, mode = given.partition(":")
    if mode not in ("", "ro", "rw", "z", "Z"):
        raise InvalidParameter(f"invalid mode: {mode}")
    for point in others(name):
        if point.type != "tmpfs":
            yield replace(point, rw=point.rw and mode != "ro", anonymous=False)


def _anonymous(destination: str) -> MountPoint:
    return MountPoint(
        type="volume", source="", name=generate(), driver="local", destination=destination, anonymous=True
    )


def _absolute(path: str, text: str) -> str:
    if not path.startswith("/"):
        raise InvalidParameter(
            f"invalid volume specification: '{text}': invalid mount path: '{path}' mount path must be absolute"
        )
    clean = posixpath.normpath(path).replace("//", "/")
    if clean == "/":
        raise InvalidParameter(
            f"invalid volume specification: '{text}': invalid specification: destination can't be '/'"
        )
    return clean


def prepare_binds(points: Iterable[MountPoint]) -> None:
    """Make missing host directories of `-v` binds, as Docker does; raises InvalidParameter for `--mount` ones."""
    for point in points:
        if point.type != "bind":
            continue
        source = Path(point.source)
        if source.exists():
            continue
        if point.must_exist:
            raise InvalidParameter(
                f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
            )
        try:
            source.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InvalidParameter(
                f"error while creating mount source path '{point.source}': mkdir {point.source}: {exc.strerror}"
            ) from exc
