"""From a container's record to what the runtime room is asked for: mounts, namespaces to join, log, runtime."""

import os
from dataclasses import replace
from pathlib import Path

import msgspec

from wherry.containers.attached import joined, on_host
from wherry.containers.deps import Deps
from wherry.containers.making import links, sources
from wherry.containers.making.config import log_limits
from wherry.containers.making.files import NAMES
from wherry.containers.record import Container, MountPoint
from wherry.digest import ChainID
from wherry.errors import Conflict, Failed, InvalidParameter
from wherry.kernel import cgroup
from wherry.kernel.mount import ATTR_RDONLY, Mount
from wherry.runtime import devices, resources, security
from wherry.runtime.shim_client import LogSpec, Part, RuntimeSpec, Shim, ShimSpec
from wherry.runtime.spec import SANDBOX, SpecInput, SpecMount, bind_options, build, can_be_deep, tmpfs_options
from wherry.spec.engine import ContainerConfig

_WORDS = {"ipc": "ipc namespace", "pid": "pid namespace"}  # what is joined, as Docker says


def check_security(deps: Deps, container: Container) -> list[str]:
    """What create can already say about privileges and limits: warnings; raises InvalidParameter or Failed."""
    host = container.host_config
    try:
        _, warnings = security.capabilities(host.cap_add or (), host.cap_drop or (), privileged=host.privileged)
    except InvalidParameter as exc:
        which = "CapDrop" if _only_drop_fails(host.cap_add or ()) else "CapAdd"
        raise InvalidParameter(f"invalid {which}: {exc.message}") from exc
    security.parse_options(host.security_opt or (), privileged=host.privileged)
    resources.build(host, numbers=dict.fromkeys(devices.limited_paths(host), (0, 0)))  # for its checks
    if _wants_init(deps, container) and not deps.settings.init_path:
        raise InvalidParameter(
            "no init program found for --init: install one (Debian: apt-get install tini) or set init-path"
        )
    return warnings


def _only_drop_fails(added: list[str] | tuple[str, ...]) -> bool:
    try:
        security.capabilities(added, (), privileged=False)
    except InvalidParameter:
        return False
    return True


def _wants_init(deps: Deps, container: Container) -> bool:
    init = container.host_config.init
    return deps.settings.init_always if init is None else init


def shim_spec(deps: Deps, container: Container) -> ShimSpec:
    """Everything one run needs. Reads /dev and the state of containers to join; raises in Docker's words."""
    config, host, settings = container.config, container.host_config, deps.settings
    parent = host.cgroup_parent or settings.cgroup_parent
    runtime = _runtime(deps, container)
    mounts, parts = _mounts(deps, container, runtime)
    built = build(
        SpecInput(
            id=container.id,
            args=[container.path, *container.args],
            config=_with_links(deps, container),
            host_config=host,
            mounts=mounts,
            netns=_network_namespace(deps, container),
            ipcns=_namespace(deps, host.ipc_mode, "ipc"),
            pidns=_namespace(deps, host.pid_mode, "pid"),
            cgroups_path=f"/{parent.strip('/')}/{container.id}",
            cgroup_v2=cgroup.layout() is cgroup.Layout.V2,
            devices=devices.for_container(host),
            block_devices=devices.numbers(devices.limited_paths(host)),
            init_path=settings.init_path if _wants_init(deps, container) else "",
            shm_size=settings.default_shm_size,
        )
    )
    size = host.console_size
    return ShimSpec(
        id=container.id,
        spec=built.spec,
        rootfs=deps.snapshots.mounts(container.id),
        parts=parts,
        runtime=runtime,
        log=_log(container),
        user=config.user,
        group_add=host.group_add or (),
        tty=config.tty,
        open_stdin=config.open_stdin,
        stdin_once=config.stdin_once,
        console_size=(size[0], size[1]) if size and len(size) == 2 and all(size) else None,
    )


def _runtime(deps: Deps, container: Container) -> RuntimeSpec:
    found = deps.settings.runtimes.get(container.runtime)
    if found is None:  # it was there when the container was created
        raise InvalidParameter(f"unknown or invalid runtime name: {container.runtime}")
    return found


def _log(container: Container) -> LogSpec:
    given = container.host_config.log_config
    if given.type == "none":
        return LogSpec(driver="none")
    max_size, max_file = log_limits(given)
    return LogSpec(path=container.log_path, max_size=max_size, max_file=max_file, attrs=_log_attributes(container))


def _log_attributes(container: Container) -> dict[str, str]:
    """The labels and variables that log-opts `labels` and `env` name."""
    options = container.host_config.log_config.config or {}
    labels = container.config.labels or {}
    variables = dict(entry.partition("=")[::2] for entry in container.config.env or [])
    return {
        **{name: labels[name] for name in options.get("labels", "").split(",") if name in labels},
        **{name: variables[name] for name in options.get("env", "").split(",") if name in variables},
    }


def _network_namespace(deps: Deps, container: Container) -> str:
    if on_host(container):
        return ""
    other = joined(container)
    return SANDBOX if other is None else _running(deps, other, "network").netns_path


def _with_links(deps: Deps, container: Container) -> ContainerConfig:
    """The config with the variables of linked containers, which its own overrule."""
    variables = links.environment(deps, container)
    config = container.config
    return msgspec.structs.replace(config, env=[*variables, *(config.env or ())]) if variables else config


def _namespace(deps: Deps, mode: str, kind: str) -> str:
    """Path of the namespace of another container that `container:x` names; "" for every other mode."""
    if not mode.startswith("container:"):
        return ""
    return _running(deps, mode.removeprefix("container:"), kind).namespace_path(kind)


def _running(deps: Deps, name: str, kind: str) -> Shim:
    other = deps.store.resolve(name)
    shim = deps.live_of(other).shim
    if shim is None:
        raise Conflict(f"cannot join {_WORDS.get(kind, kind)} of a non running container: {other.id}")
    return shim


def _mounts(deps: Deps, container: Container, runtime: RuntimeSpec) -> tuple[list[SpecMount], list[Part]]:
    """The files of ours, then the user's mounts over them; and what the shim must prepare for these."""
    covered = {point.destination for point in container.mounts}
    other = joined(container)
    owner = container if other is None else deps.store.resolve(other)
    directory = deps.settings.directory(owner)
    mounts = [_own_file(directory, name, path) for name, path in NAMES.items() if path not in covered]
    parts: list[Part] = []
    sources.check_proc(container.mounts, runtime.kind)
    propagations = sources.propagations(container.mounts, deps.settings.data_root)
    deep = can_be_deep(runtime.kind)
    for point in container.mounts:
        if point.deep_read_only and not deep:
            raise Failed(f"recursive read-only mounts need kernel 5.12 and crun or runc, not {runtime.kind}")
        part = part_of(deps, point)
        source = point.source
        if part is not None:
            source = deps.shims.part(container.id, len(parts))
            if deep and not point.rw and not point.flat_read_only:
                part = replace(part, attributes=ATTR_RDONLY)
            parts.append(part)
        flat = point.flat_read_only or part is not None or not os.path.isdir(source)  # crun refuses `rro` on a file
        propagation = propagations.get(point.destination, point.propagation)
        mounts.append(_mount(point, source, propagation, deep=deep and not flat))
    return mounts, parts


def _own_file(directory: Path, name: str, path: str) -> SpecMount:
    return SpecMount(destination=path, type="bind", source=str(directory / name), options=bind_options(read_only=False))


def part_of(deps: Deps, point: MountPoint, *, always: bool = False) -> Part | None:
    """What of a tree the mount shows, for the shim; None when the runtime can bind it as it stands, unless `always`.

    A bind without what is mounted below it is for the shim, too: crun takes that along all the same.
    """
    if point.type == "image":
        return Part(mounts=tuple(deps.snapshots.view(ChainID(point.chain))), selector=point.subpath, name=point.source)
    if point.type == "tmpfs" or not (point.subpath or point.id_map or not point.recursive or always):
        return None
    return Part(
        mounts=(Mount(type="bind", source=point.source),),
        selector=point.subpath,
        beneath=True,
        name=point.source,
        recursive=point.recursive,
        id_map=point.id_map,
    )


def tmpfs_of(point: MountPoint) -> tuple[str, ...]:
    """Mount options of a tmpfs."""
    return tmpfs_options(point.options if point.rw or "ro" in point.options else (*point.options, "ro"))


def _mount(point: MountPoint, source: str, propagation: str, *, deep: bool) -> SpecMount:
    if point.type == "tmpfs":
        return SpecMount(destination=point.destination, type="tmpfs", source="tmpfs", options=tmpfs_of(point))
    return SpecMount(
        destination=point.destination,
        type="bind",
        source=source,
        options=(
            *bind_options(
                read_only=not point.rw,
                propagation=propagation,
                recursive=point.recursive,
                deep=deep,
            ),
            *sources.restrictions(point.source),
        ),
    )
