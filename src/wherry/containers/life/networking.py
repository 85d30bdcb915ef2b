"""connect, disconnect: a container's networks change, while it runs or for its next start.

The record's `networking` says what it is to be on; of one that runs its interfaces, names and files follow at once.
All or nothing: what fails is undone wholly.
"""

import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack

from wherry.aio import finish, settle
from wherry.containers.attached import NONE, Asked, asked, joined, with_asked
from wherry.containers.deps import Deps
from wherry.containers.making import endpoints, files
from wherry.containers.making.endpoints import HOST_IS_FIXED, PRIVATE, SHARING
from wherry.containers.record import Container, Status
from wherry.errors import Conflict, Failed, Forbidden, InvalidParameter, NotFound
from wherry.events import Event
from wherry.network import plan
from wherry.network.endpoint import Endpoint
from wherry.network.records import HOST, NULL, NetworkRecord
from wherry.spec.engine import EndpointSettings

log = logging.getLogger(__name__)


async def connect(deps: Deps, network: str, name: str, settings: EndpointSettings) -> None:
    """Put a container on one more network.

    Raises NotFound (either), InvalidParameter (addresses, names, kinds of networks that do not go together), Forbidden
    (it runs and is there already), Conflict (it is being removed), Failed.
    """
    container = deps.store.resolve(name)
    await finish(_connect(deps, network, container, settings))


async def _connect(deps: Deps, network: str, container: Container, settings: EndpointSettings) -> None:
    async with deps.locks(container.id):
        _refuse_removed(deps, container)
        record = deps.networks.resolve(network)
        endpoints.refuse_configuration(record)
        endpoints.check(deps.networks, record.id, settings)
        _refuse_combination(container, record)
        settings = endpoints.with_network(settings, record)
        if container.running:
            await _join(deps, container, record, settings)
        else:
            await _save_wanted(deps, container, {**asked(container), record.name: settings})


def _refuse_removed(deps: Deps, container: Container) -> None:
    if deps.store.get(container.id) is None:
        raise NotFound(f"No such container: {container.name}")
    if container.state.status in (Status.REMOVING, Status.DEAD):
        raise Conflict(
            f"Container {container.id} is marked for removal and cannot be connected or disconnected to the network"
        )


def _refuse_combination(container: Container, record: NetworkRecord) -> None:
    """In Docker's order."""
    names = asked(container)
    if container.running and record.name in names:
        raise Forbidden(f"endpoint with name {container.name} already exists in network {record.name}")
    if joined(container) is not None or HOST in names:
        raise InvalidParameter(SHARING)
    if record.name == HOST:
        raise InvalidParameter(HOST_IS_FIXED)
    others = [name for name in names if name != record.name]
    if NONE in others or (record.name == NONE and others):
        raise InvalidParameter(PRIVATE)


async def _save_wanted(deps: Deps, container: Container, wanted: Asked) -> None:
    before = container.networking
    container.networking = with_asked(container, wanted)
    try:
        await deps.store.save(container)
    except BaseException:
        container.networking = before
        raise


async def _join(deps: Deps, container: Container, record: NetworkRecord, settings: EndpointSettings) -> None:
    """A running container: interface, names, files, then the record."""
    networking, attached, ports = container.networking, container.endpoints, container.ports

    def put_back() -> None:
        container.networking, container.endpoints, container.ports = networking, attached, ports

    async with AsyncExitStack() as undo:
        undo.callback(put_back)
        if record.driver == NULL:
            endpoint = plan.bare(record)
        else:
            netns = _netns_path(deps, container)
            request = endpoints.endpoint_request(deps, container, record.id, settings)
            endpoint, container.ports = await deps.networks.join(container.id, request, netns)
            undo.push_async_callback(deps.networks.leave, container.id, record.id, netns)
        container.endpoints = (*attached, endpoint)
        container.networking = with_asked(container, {**asked(container), endpoint.network: settings})
        undo.push_async_callback(settle, _take_off_files, deps, container, endpoint)
        await settle(_put_into_files, deps, container, endpoint, attached)
        await deps.store.save(container)
        undo.pop_all()
    publish(deps, container, endpoint, "connect")


def _netns_path(deps: Deps, container: Container) -> str:
    shim = deps.live_of(container).shim
    if shim is None:
        raise Conflict(f"container {container.name} is not running")
    return shim.netns_path


def _put_into_files(deps: Deps, container: Container, endpoint: Endpoint, before: Sequence[Endpoint]) -> None:
    """hosts, and resolv.conf where from now on somebody else answers. Blocking."""
    directory, config = deps.settings.directory(container), deps.networks.config
    try:
        files.change_hosts(directory, add=files.own_lines(container, endpoint))
        old, new = (
            files.resolv_conf(container, config, [each.network for each in attached])
            for attached in (before, container.endpoints)
        )
        if old != new:
            files.change_resolv_conf(directory, old, new)
    except OSError as exc:
        raise Failed(f"cannot change the network files of container {container.name}: {exc.strerror}") from exc


def _take_off_files(deps: Deps, container: Container, endpoint: Endpoint) -> None:
    """Its lines in hosts. resolv.conf stays: the resolver goes on to answer. Blocking, and never raises."""
    try:
        files.change_hosts(deps.settings.directory(container), remove=files.own_lines(container, endpoint))
    except OSError as exc:
        log.warning("/etc/hosts of container %s cannot be changed: %s", container.name, exc.strerror)


async def disconnect(deps: Deps, network: str, name: str, *, force: bool = False) -> None:
    """Take a container off a network. A network that is gone itself is only taken out of the record.

    Raises NotFound (either), InvalidParameter (the host's network), Failed (it is not on it).
    """
    try:
        container = deps.store.resolve(name)
    except NotFound:
        if not force:
            raise
        deps.networks.resolve(network)
        raise NotFound(f"endpoint {name} not found") from None
    await finish(_disconnect(deps, network, container))


async def _disconnect(deps: Deps, network: str, container: Container) -> None:
    async with deps.locks(container.id):
        _refuse_removed(deps, container)
        wanted = asked(container)
        name = _name_of(deps, network, wanted)
        if name not in wanted:
            words = "network" if container.running else "the network"
            raise Failed(f"container {container.id} is not connected to {words} {name}")
        if name == HOST:
            raise InvalidParameter(HOST_IS_FIXED)
        left = {key: settings for key, settings in wanted.items() if key != name}
        endpoint = next((each for each in container.endpoints if each.network == name), None)
        if endpoint is not None and container.running:
            await _leave(deps, container, endpoint, left)
        else:
            await _save_wanted(deps, container, left)
            endpoint = endpoints.absent(deps.networks, name, wanted[name].network_id)
    publish(deps, container, endpoint, "disconnect")


def _name_of(deps: Deps, network: str, wanted: Asked) -> str:
    """Of a network that may have been removed since: who is still to be on it can be taken off."""
    try:
        return deps.networks.resolve(network).name
    except NotFound:
        for name, settings in wanted.items():
            if network in (name, settings.network_id):
                return name
        raise


async def _leave(deps: Deps, container: Container, endpoint: Endpoint, left: Asked) -> None:
    """The interface goes first; from then on there is no way back."""
    if endpoint.driver != NULL:
        container.ports = await deps.networks.leave(container.id, endpoint.network_id, _netns_path(deps, container))
    container.endpoints = tuple(each for each in container.endpoints if each is not endpoint)
    container.networking = with_asked(container, left)
    await settle(_take_off_files, deps, container, endpoint)
    await deps.store.save(container)


def publish(deps: Deps, container: Container, endpoint: Endpoint, action: str) -> None:
    """Tell the world of connect or disconnect, as Docker does."""
    deps.events.publish(
        Event(
            type="network",
            action=action,
            actor=endpoint.network_id,
            attributes={"container": container.id, "name": endpoint.network, "type": endpoint.driver},
        )
    )
