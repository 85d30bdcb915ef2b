"""The networks of this engine: the default ones (bridge, host, none) and those that users make.

What a network is made of: a record in the state (`catalog`), the host's side of it (`drivers`), its part of the
firewall (`wall`), and what running containers have on it (`sandboxes`). A network is made and removed one at a time;
its row says `pending` until everything is there, so that a start of the daemon takes half-made ones away.
Async verbs, called from the event loop.
"""

import asyncio
import ipaddress
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace

from wherry.aio import finish, settle
from wherry.errors import Failed, Forbidden, InvalidParameter, NotFound, WherryError
from wherry.events import Event, Events
from wherry.filters import Filters
from wherry.ids import ContainerID, generate
from wherry.network import config as configuration
from wherry.network import creation, default, documents, ipam, plan
from wherry.network.catalog import Catalog
from wherry.network.config import NetworkConfig
from wherry.network.documents import Attached
from wherry.network.drivers import bridge, namespaces
from wherry.network.drivers.bridge import BridgeDriver
from wherry.network.drivers.lan import IpvlanDriver, MacvlanDriver
from wherry.network.egress.gates import Gates
from wherry.network.endpoint import Endpoint, EndpointRequest, Port
from wherry.network.forwarding import Forwarding
from wherry.network.naming import Naming
from wherry.network.places import IPNetwork, Namespace, NetworkDriver, NetworkRules
from wherry.network.ports import HostPorts, PortRequest
from wherry.network.records import BRIDGE, HOST, IPVLAN, MACVLAN, NULL, NetworkRecord
from wherry.network.sandboxes import Parts, Running, Sandbox, Sandboxes, SandboxRequest
from wherry.network.wall.refusals import Refusals
from wherry.network.wall.table import Firewall
from wherry.spec.engine import CreateNetwork
from wherry.state import Put, State

__all__ = ["NetworkConfig", "Networks", "Running", "Sandbox", "SandboxRequest"]

log = logging.getLogger(__name__)

NONE = "none"
PREDEFINED = {BRIDGE: BRIDGE, HOST: HOST, NONE: NULL}  # name to driver
ULA_KEY = "network/unique-local"  # in table settings: what this engine's IPv6 subnets are drawn from
BINDING = "com.docker.network.bridge.host_binding_ipv4"


class Networks:
    def __init__(self, config: NetworkConfig, state: State, events: Events) -> None:
        """Raises InvalidParameter for a wrong flag; touches nothing before `start`."""
        configuration.check(config)
        self.config = config
        self._state = state
        self._events = events
        self._pools = ipam.parse_pools(config.address_pools)
        self._wall = Firewall(config.table, respect=config.respect_firewall)
        self._default = default.DefaultBridge(config)
        self._forwarding = Forwarding(state, self._wall, enabled=config.ip_forward)
        self._refusals = Refusals(config.table)
        self._listening: asyncio.Task[None] | None = None
        self._catalog = Catalog(state)
        self._changing = asyncio.Lock()  # one network is made or removed at a time
        self._drivers: dict[str, NetworkDriver] = {
            BRIDGE: BridgeDriver(self._device),
            MACVLAN: MacvlanDriver(),
            IPVLAN: IpvlanDriver(),
        }
        self._gates = Gates(self._wall, self._catalog.get, events)
        self._naming = Naming(lambda: [(record.id, record.name) for record in self._catalog], self._gates.gate)
        self._sandboxes = Sandboxes(
            Parts(
                state=state,
                catalog=self._catalog,
                drivers=self._drivers,
                wall=self._wall,
                ports=HostPorts(respect=config.respect_firewall),
                naming=self._naming,
                gates=self._gates,
                bridge_of=self._device,
                default_bind=lambda record: record.options.get(BINDING) or config.default_bind,
            )
        )

    def _device(self, record: NetworkRecord) -> str:
        """The host's interface of a bridge network."""
        default_device = self._default.device
        return plan.bridge_name(record, default_device.name if default_device else "")

    # -- start and stop

    async def start(self, running: Mapping[ContainerID, Running]) -> None:
        """Make or adopt networks and firewall, take over what the containers in `running` hold, drop every other row.

        Idempotent. Raises Failed, NotSupported, InvalidParameter.
        """
        await self._sandboxes.let_go()
        rows = await settle(self._sandboxes.stored, running)
        try:
            await settle(self._prepare, rows)
        except OSError as exc:
            raise Failed(f"cannot set up container networks: {exc.strerror}") from exc
        for container_id, row in rows.items():
            await self._sandboxes.adopt(container_id, row, running[ContainerID(container_id)].netns_path)
        await self._naming.serve_host(self.config.host_dns)
        await self._listen()

    async def _listen(self) -> None:
        """Hear from the kernel what egress policies refuse."""
        await self._stop_listening()
        try:
            await settle(self._refusals.open)
        except OSError as exc:
            log.warning("what egress policies refuse is not reported: %s", exc.strerror)
            return
        self._listening = asyncio.create_task(self._report_refusals(), name="refusals of egress policies")

    async def _report_refusals(self) -> None:
        async for each in self._refusals:
            self._gates.refused_packet(each.source, each.protocol, each.destination, each.port)

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        self._refusals.close()

    def _prepare(self, rows: Mapping[str, plan.Row]) -> None:
        """Records, bridges, sysctls, firewall. Blocking."""
        self._catalog.clear()
        stored = self._catalog.stored()
        self._load_predefined(stored, rows)
        for record in stored:
            if record.pending:
                self._unmake(record)
            elif not record.predefined:
                self._catalog.remember(record)
                self._remake(record)
        self._sandboxes.reattach(rows.values())
        if not self._bridges():
            return  # neither links nor rules: the host stays as it is
        self._wall.load(
            [self._rules(record, rows.values()) for record in self._bridges()],
            self._sandboxes.publications(rows.values()),
            self._gates.rules({key: (row.name, row.attachments) for key, row in rows.items()}),
            guarded=self._forwarding.guards(4),
            guarded6=self._routes_six() and self._forwarding.guards(6),
        )
        self._forwarding.begin(4)
        if self._routes_six():
            self._forwarding.begin(6)

    def _routes_six(self) -> bool:
        return any(record.ipv6 and not record.internal for record in self._bridges())

    def _rules(self, record: NetworkRecord, rows: Iterable[plan.Row]) -> NetworkRules:
        """With the subnets that running containers have from before the network's subnet was changed."""
        rules = default.rules(record, self._device(record))
        lived = {
            interface.network
            for row in rows
            for each in row.attachments
            if each.network_id == record.id
            for interface in each.place().addresses
            if not interface.is_link_local
        }
        return replace(rules, subnets=[*rules.subnets, *sorted(lived - set(rules.subnets), key=str)])

    def _load_predefined(self, stored: Sequence[NetworkRecord], rows: Mapping[str, plan.Row]) -> None:
        by_name = {record.name: record for record in stored if record.predefined}
        for name, driver in PREDEFINED.items():
            record = before = by_name.get(name) or NetworkRecord(
                id=generate(), name=name, driver=driver, created=time.time_ns()
            )
            if name == BRIDGE:
                in_use = [
                    ipaddress.IPv4Address(each.endpoint.ip)
                    for row in rows.values()
                    for each in row.attachments
                    if each.network_id == record.id and each.endpoint.ip
                ]
                record = self._default.prepare(record, self._pools, in_use)
            if name not in by_name or record != before:
                self._state.write(self._catalog.row(record))
            if name != BRIDGE or self._default.device is not None:
                self._catalog.remember(record)

    def _remake(self, record: NetworkRecord) -> None:
        """The host's side of a network that is there already; one network's trouble is not the others'."""
        if record.config_only:
            return
        try:
            self._drivers[record.driver].create(record)
        except (OSError, WherryError) as exc:
            log.warning("network %s cannot be made again: %s", record.name, exc)

    def _unmake(self, record: NetworkRecord) -> None:
        """A network that was being made or removed when a daemon ended."""
        log.info("removing network %s, which was left half-done", record.name)
        try:
            self._drivers[record.driver].remove(record)
            self._state.write(self._catalog.no_row(record))
        except (OSError, WherryError) as exc:
            log.warning("cannot remove half-done network %s: %s", record.name, exc)

    def _bridges(self) -> list[NetworkRecord]:
        return [record for record in self._catalog if record.driver == BRIDGE and not record.config_only]

    async def stop(self, *, keep: bool) -> None:
        """Close what the process holds. Without `keep` (nothing runs) also take links, firewall, sysctls back."""
        await self._stop_listening()
        await self._sandboxes.let_go()
        try:
            if not keep:
                await settle(self._take_back)
        except (OSError, WherryError) as exc:
            log.warning("cannot take the networks down: %s", exc)
        finally:
            await settle(self._wall.close)

    def _take_back(self) -> None:
        with ExitStack() as steps:
            steps.callback(self._default.take_back)
            steps.callback(self._wall.remove)
            steps.callback(self._forwarding.end)
            for record in self._catalog:
                if not record.predefined and not record.config_only:
                    steps.callback(self._drivers[record.driver].remove, record)

    # -- networks come and go

    async def create(self, body: CreateNetwork) -> tuple[str, str]:
        """Make a network; its id and a warning ("" for none).

        Raises InvalidParameter, Forbidden, Conflict (name taken), NotFound (no such driver), NotSupported, Failed.
        """
        record = creation.draft(body, self.config.network_options)
        Gates.check(record)
        return await finish(self._create(record))

    async def _create(self, record: NetworkRecord) -> tuple[str, str]:
        async with self._changing:
            creation.refuse_taken(record.name, self._catalog)
            if record.config_from:
                record = creation.inherit(record, self._origin(record.config_from))
            if record.config_only:
                await self._catalog.save(record)
                self._catalog.remember(record)
            else:
                record = await self._complete(record)
                await self._make(record)
        self._publish(record, "create")
        return record.id, ""

    def _origin(self, name: str) -> NetworkRecord:
        found = self._catalog.named(name)
        if found is None:
            raise NotFound(f'configuration network "{name}" does not exist')
        if not found.config_only:
            raise NotFound(f'configuration network "{name}" does not exist: network {name} is an ordinary one')
        return found

    async def _complete(self, record: NetworkRecord) -> NetworkRecord:
        busy = await settle(bridge.busy_subnets)
        pools = self._pools if any(base.version == 6 for base, _ in self._pools) else [*self._pools, self._own_pool()]
        record = creation.fill(record, pools=pools, own=self._catalog.subnets(), busy=busy)
        self._drivers[record.driver].check(record)
        return record

    def _own_pool(self) -> tuple[IPNetwork, int]:
        seed = self._state.rows("settings").get(ULA_KEY)
        if seed is None:
            seed = os.urandom(16)
            self._state.write(Put("settings", ULA_KEY, seed))
        return ipam.unique_local(seed)

    async def _make(self, record: NetworkRecord) -> None:
        driver = self._drivers[record.driver]
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._catalog.delete, record)
            await self._catalog.save(replace(record, pending=True))
            undo.push_async_callback(settle, driver.remove, record)
            try:
                await settle(driver.create, record)
            except OSError as exc:
                raise Failed(f"cannot create network {record.name}: {exc.strerror or exc}") from exc
            if record.driver == BRIDGE:
                rules = default.rules(record, self._device(record))
                undo.push_async_callback(settle, self._wall.remove_network, rules.bridge)
                await settle(self._wall.add_network, rules)
                await settle(self._route, record)
            await self._catalog.save(record)
            self._catalog.remember(record)
            undo.pop_all()

    def _route(self, record: NetworkRecord) -> None:
        """Make the host a router for what the network speaks, if it is none yet. Blocking."""
        for version, speaks in ((4, record.ipv4), (6, record.ipv6)):
            if speaks and not record.internal and not self._forwarding.on(version):
                if self._forwarding.guards(version):
                    self._wall.guard(version)
                self._forwarding.begin(version)

    async def remove(self, name: str) -> str:
        """Remove a network; its id. Raises NotFound, Forbidden (predefined, or containers are on it), Failed."""
        record = self._catalog.resolve(name)
        await finish(self._remove(record))
        return record.id

    async def _remove(self, record: NetworkRecord) -> None:
        if record.predefined:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        async with self._changing:
            if self._catalog.get(record.id) is None:
                raise NotFound(f"network {record.name} not found")
            self._refuse_used(record)
            self._catalog.forget(record)  # from now on nobody joins it
            try:
                await self._take_down(record)
            except BaseException:
                self._catalog.remember(record)
                raise
        self._publish(record, "destroy")

    def _refuse_used(self, record: NetworkRecord) -> None:
        if record.config_only and any(other.config_from == record.name for other in self._catalog):
            raise Forbidden(f'error while removing network: configuration network "{record.name}" is in use')
        if self._catalog.uses[record.id]:
            users = ", ".join(f'name:"{name}" id:"{endpoint[:12]}"' for name, endpoint in self._sandboxes.on(record.id))
            where = f" ({users})" if users else ""
            raise Forbidden(f"error while removing network: network {record.name} has active endpoints{where}")

    async def _take_down(self, record: NetworkRecord) -> None:
        if not record.config_only:
            await self._catalog.save(replace(record, pending=True))
            try:
                await settle(self._drivers[record.driver].remove, record)
                if record.driver == BRIDGE:
                    await settle(self._wall.remove_network, self._device(record))
            except OSError as exc:
                raise Failed(f"cannot remove network {record.name}: {exc.strerror or exc}") from exc
        await self._catalog.delete(record)

    async def prune(self, filters: Filters, before: int | None) -> list[str]:
        """Remove the users' networks that no running container is on; their names.

        `before`: only those made before this moment (ns), which is what filter `until` means.
        """
        filters.check(("label", "label!", "until"))
        removed = []
        for record in sorted(self._catalog, key=lambda each: each.name):
            if record.predefined or self._catalog.uses[record.id]:
                continue
            if before is not None and record.created >= before:
                continue
            if not filters.labels(record.labels) or not filters.without_labels(record.labels):
                continue
            try:
                await finish(self._remove(record))
            except WherryError as exc:
                log.warning("network %s is not pruned: %s", record.name, exc)
                continue
            removed.append(record.name)
        self._events.publish(Event(type="network", action="prune", actor="", attributes={"reclaimed": "0"}))
        return removed

    def _publish(self, record: NetworkRecord, action: str) -> None:
        self._events.publish(
            Event(
                type="network",
                action=action,
                actor=record.id,
                attributes={"name": record.name, "type": NULL if record.config_only else record.driver},
            )
        )

    # -- sandboxes

    def resolve(self, name: str) -> NetworkRecord:
        """By name, id or beginning of an id; "" and "default" are the default network. Raises NotFound."""
        if name in ("", "default"):
            name = NONE if self._default.device is None else BRIDGE
        return self._catalog.resolve(name)

    def validate(self, request: SandboxRequest) -> None:
        """What can be refused before anything is done. Raises InvalidParameter, NotFound, Forbidden."""
        for record, wanted in self._wanted(request):
            self.check_endpoint(record, wanted)

    def check_endpoint(self, record: NetworkRecord, wanted: EndpointRequest) -> None:
        """Raises InvalidParameter in Docker's words, Forbidden for a network that takes no containers."""
        if record.config_only:
            raise Forbidden(f"cannot create endpoint on configuration-only network {record.name}")
        problems = []
        if wanted.mac:
            ipam.parse_mac(wanted.mac)
        Gates.check_attachment(record, wanted.options)
        plan.parse_sysctls(wanted.options.get(plan.SYSCTLS, ""))
        for version, text in ((4, wanted.ip), (6, wanted.ip6)):
            if not text:
                continue
            if record.predefined:
                problems.append("user specified IP address is supported on user defined networks only")
            elif not any(subnet.asked for subnet in record.subnets if subnet.version == version):
                problems.append(
                    "user specified IP address is supported only when connecting to networks with user configured "
                    "subnets"
                )
            elif not any(ipaddress.ip_address(text) in pool.subnet for pool in self._catalog.pools(record.id, version)):
                problems.append(f"no configured subnet contains IP address {text}")
        if problems:
            raise InvalidParameter(
                f"invalid config for network {record.name}: invalid endpoint settings:\n" + "\n".join(problems)
            )

    def _wanted(self, request: SandboxRequest) -> list[tuple[NetworkRecord, EndpointRequest]]:
        """Each network once, in the order of the interfaces."""
        found: dict[str, tuple[NetworkRecord, EndpointRequest]] = {}
        for each in request.endpoints or [EndpointRequest(network=request.mode, names=_names(request))]:
            record = self.resolve(each.network)
            found.setdefault(record.id, (record, each))
        return list(found.values())

    async def connect(self, container_id: str, request: SandboxRequest) -> Sandbox:
        """A container's network stack: a new namespace with its interfaces, addresses and published ports.

        A container that is connected already is released first. Raises InvalidParameter, NotFound, NotSupported, and
        Failed where Docker answers 500 (address or port taken); then nothing is held.
        """
        self.validate(request)
        await self._sandboxes.release(container_id)
        wanted = self._wanted(request)
        first = wanted[0][0]
        if first.driver == HOST:
            return Sandbox(netns=None, endpoints=(plan.bare(first),))
        if first.driver == NULL:
            namespace = await settle(namespaces.empty)
            namespace.netlink.close()
            return Sandbox(netns=namespace.fd, endpoints=(plan.bare(first),))
        return await self._sandboxes.connect(container_id, wanted, request)

    async def release(self, container_id: str) -> None:
        """Give back what a container held that has ended. Idempotent. Its interfaces go with its namespace."""
        await self._sandboxes.release(container_id)

    async def join(
        self, container_id: str, wanted: EndpointRequest, netns_path: str
    ) -> tuple[Endpoint, tuple[Port, ...]]:
        """Attach a running container to one more network; its endpoint there, and all ports published then.

        Raises NotFound, InvalidParameter, Forbidden (it is on it already), Failed; then nothing is changed.
        """
        record = self.resolve(wanted.network)
        self.check_endpoint(record, wanted)
        return await self._sandboxes.join(container_id, record, wanted, netns_path)

    async def leave(self, container_id: str, network: str, netns_path: str) -> tuple[Port, ...]:
        """Detach a running container; the ports published then. Raises NotFound, Failed."""
        return await self._sandboxes.leave(container_id, self.resolve(network), netns_path)

    async def change_ports(
        self, container_id: str, add: Sequence[PortRequest], remove: Sequence[Port]
    ) -> tuple[Port, ...]:
        """Publish and withdraw ports of a running container, all or nothing; what is published then.

        Raises Failed (a port is taken), NotFound (one that is not published), Conflict (no network leads out).
        """
        return await self._sandboxes.change_ports(container_id, add, remove)

    def held(self, container_id: str) -> tuple[tuple[Endpoint, ...], tuple[Port, ...]] | None:
        """Endpoints and ports of a running container; None when it has no network of its own."""
        return self._sandboxes.held(container_id)

    async def rename_container(self, container_id: str, old: str, new: str) -> None:
        await self._sandboxes.rename(container_id, old, new)

    @asynccontextmanager
    async def namespace_of(
        self, container_id: str, netns_path: str
    ) -> AsyncIterator[tuple[Namespace, Sequence[plan.Attachment]]]:
        """A running container's namespace, and its attachments."""
        attachments = self._sandboxes.attachments(container_id)
        async with namespaces.inside(netns_path) as namespace:
            yield namespace, attachments

    # -- documents

    @property
    def bridge_gateway(self) -> str:
        """The host as containers on the default bridge see it (`host-gateway`); "" without a bridge."""
        record = self._catalog.named(BRIDGE)
        return record.subnets[0].gateway if record is not None and record.subnets else ""

    def inspect(self, name: str, containers: Attached) -> dict[str, object]:
        """Docker's document of one network."""
        return documents.network(self._catalog.resolve(name), containers)

    def records(self) -> list[NetworkRecord]:
        """All networks, by name."""
        return sorted(self._catalog, key=lambda record: record.name)

    def list(self) -> list[dict[str, object]]:
        """Docker's documents of all networks, by name, without their containers."""
        return [documents.network(record, {}) for record in self.records()]


def _names(request: SandboxRequest) -> Sequence[str]:
    return (request.name,) if request.name else ()
