"""What running containers have on their networks: interfaces, addresses, names, published ports.

A sandbox lives as long as the network namespace whose fd `connect` returns. What the host keeps for it besides is held
by a row of state table `endpoints`, written before the effects, and given back by `release`. The row of a container
that does not run at start is dropped; the firewall's table is then written anew from those that are left.
Async, called from the event loop; verbs about one container under that container's lock.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace

import msgspec

from wherry.aio import finish, settle
from wherry.errors import Conflict, Failed, Forbidden, NotFound, WherryError
from wherry.ids import generate, short
from wherry.network import ipam, plan
from wherry.network.catalog import Catalog
from wherry.network.drivers import lan, namespaces
from wherry.network.egress.gates import Gates
from wherry.network.endpoint import Endpoint, EndpointRequest, NameServers, Port
from wherry.network.naming import Naming
from wherry.network.places import Namespace, NetworkDriver, Publication
from wherry.network.plan import Attachment, Row
from wherry.network.ports import PROTOCOLS, Held, HostPorts, PortRequest, PortTaken
from wherry.network.records import BRIDGE, IPVLAN, NetworkRecord
from wherry.network.relay import Relay
from wherry.network.wall.table import Firewall
from wherry.state import Delete, Put, State

log = logging.getLogger(__name__)

SETUP = "failed to set up container networking"  # how Docker's message begins
Wanted = Sequence[tuple[NetworkRecord, EndpointRequest]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRequest:
    mode: str = BRIDGE  # a network's name or id, host, none; "" and "default" are the default network
    name: str = ""  # the container's, for error messages
    ports: Sequence[PortRequest] = ()
    endpoints: Sequence[EndpointRequest] = ()  # in the order of interfaces; none = the mode alone
    nameservers: NameServers = field(default_factory=NameServers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    netns: int | None  # fd, which the caller closes; None = the host's own namespace
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A container found running at start."""

    netns_path: str  # /proc/<pid>/ns/net


@dataclass(slots=True, kw_only=True)
class _Holding:
    row: Row
    held: list[Held] = field(default_factory=list)
    relays: dict[Port, Relay] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What sandboxes are made with."""

    state: State
    catalog: Catalog
    drivers: Mapping[str, NetworkDriver]
    wall: Firewall
    ports: HostPorts
    naming: Naming
    gates: Gates
    bridge_of: Callable[[NetworkRecord], str]  # the host's interface of a bridge network
    default_bind: Callable[[NetworkRecord], str]  # host address of its ports that name none


class Sandboxes:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._holdings: dict[str, _Holding] = {}  # by container id

    # -- a container starts

    async def connect(self, container_id: str, wanted: Wanted, request: SandboxRequest) -> Sandbox:
        """A new namespace with an interface for each of `wanted`, addresses and published ports.

        Raises InvalidParameter, NotSupported, and Failed where Docker answers 500; then nothing is held.
        """
        parts = self._parts
        made: list[Namespace] = []
        async with AsyncExitStack() as undo:
            attachments: list[Attachment] = []
            for record, each in wanted:
                attachments.append(self._reserve(undo, record, each, attachments))
            holding = _Holding(
                row=Row(
                    attachments=tuple(attachments),
                    wanted=tuple(request.ports),
                    nameservers=request.nameservers,
                    name=request.name,
                )
            )
            undo.callback(parts.ports.release, holding.held)
            self._hold_ports(holding)
            undo.callback(_close, made)
            undo.push_async_callback(settle, self._undo, container_id, holding.row)
            try:
                await settle(self._effect, container_id, holding.row, made)
            except OSError as exc:
                raise Failed(f"{SETUP}: {exc.strerror or exc}") from exc
            undo.push_async_callback(self._close_relays, holding)
            await self._open_relays(holding)
            undo.push_async_callback(parts.naming.hide, container_id, holding.row)
            await parts.naming.show(container_id, holding.row, made[0])
            self._holdings[container_id] = holding
            undo.pop_all()
        made[0].netlink.close()
        endpoints = tuple(each.endpoint for each in attachments)
        return Sandbox(netns=made[0].fd, endpoints=endpoints, ports=holding.row.ports)

    def _reserve(
        self, undo: AsyncExitStack, record: NetworkRecord, wanted: EndpointRequest, others: Sequence[Attachment]
    ) -> Attachment:
        """Addresses and names of one interface, given back by `undo`."""
        catalog = self._parts.catalog
        catalog.uses[record.id] += 1
        undo.callback(self._leave_network, record.id)
        found: dict[int, tuple[str, int, str]] = {}
        for version, on, text in ((4, record.ipv4, wanted.ip), (6, record.ipv6, wanted.ip6)):
            if not on or not catalog.pools(record.id, version):
                continue
            try:
                pool, interface = catalog.reserve(record, text) if text else catalog.allocate(record, version)
            except Conflict as exc:
                raise Failed(f"{SETUP}: {exc.message}") from exc
            undo.callback(catalog.release, record.id, str(interface.ip))
            gateway = "" if record.internal or not self._routed(record, version) else str(pool.gateway.ip)
            found[version] = str(interface.ip), pool.subnet.prefixlen, gateway
        ip, prefix, gateway = found.get(4, ("", 0, ""))
        ip6, prefix6, gateway6 = found.get(6, ("", 0, ""))
        endpoint_id = generate()
        taken = [each.endpoint.interface for each in others]
        endpoint = Endpoint(
            network=record.name,
            network_id=record.id,
            endpoint_id=endpoint_id,
            mac="" if record.driver == IPVLAN else _mac(wanted.mac, ip, endpoint_id),
            ip=ip,
            prefix=prefix,
            gateway=gateway,
            ip6=ip6,
            prefix6=prefix6,
            gateway6=gateway6,
            interface=plan.next_interface(taken, wanted.options.get(plan.IFNAME, "")),
            driver=record.driver,
            link_local_ips=tuple(wanted.link_local_ips),
            aliases=tuple(wanted.aliases),
            names=tuple(wanted.names),
            on_link=lan.on_link(record),
            gw_priority=wanted.gw_priority,
            options=wanted.options,
        )
        return Attachment(endpoint=endpoint, host_name=f"veth{endpoint_id[:7]}", links=wanted.links)

    def _routed(self, record: NetworkRecord, version: int) -> bool:
        """False on bridge networks that the host keeps to themselves, and where there is no way out or no gateway."""
        if record.driver != BRIDGE:
            return lan.leads_out(record) and not lan.on_link(record)
        return record.options.get(f"com.docker.network.bridge.gateway_mode_ipv{version}") != "isolated"

    def _leave_network(self, network_id: str) -> None:
        self._parts.catalog.uses[network_id] -= 1

    def _effect(self, container_id: str, row: Row, made: list[Namespace]) -> None:
        """Row, namespace, interfaces, firewall; blocking. What was done of it `_undo` and closing `made` takes back."""
        parts = self._parts
        parts.state.write(Put("endpoints", container_id, msgspec.json.encode(row)))
        made.append(namespaces.empty())
        for attachment in row.attachments:
            driver, record = self._driver(attachment)
            driver.attach(record, attachment.place(), made[0])
        namespaces.set_default_routes(made[0], plan.routes(row.attachments))
        parts.gates.close_off(container_id, row.attachments, row.name)
        parts.wall.publish(self._publications(row))
        self._forget_flows(row, ended=False)

    def _driver(self, attachment: Attachment) -> tuple[NetworkDriver, NetworkRecord]:
        record = self._parts.catalog.resolve(attachment.network_id)
        return self._parts.drivers[record.driver], record

    def _publications(self, row: Row) -> list[Publication]:
        bridges = {}
        for each in row.attachments:
            record = self._parts.catalog.get(each.network_id)
            if record is not None:
                bridges[record.id] = self._parts.bridge_of(record)
        return plan.publications(row.attachments, row.ports, bridges)

    # -- published ports

    def _hold_ports(self, holding: _Holding) -> None:
        """Bind what is wanted where a network leads out; adds to `holding.held` as they come. Microseconds each."""
        four, six = plan.targets(holding.row.attachments)
        out = four or six
        if out is None:
            return
        for request in holding.row.wanted:
            self._hold_port(holding, request, out, four, six)
        holding.row = replace(holding.row, ports=tuple(one.port for one in holding.held))

    def _hold_port(
        self,
        holding: _Holding,
        request: PortRequest,
        out: Attachment,
        four: Attachment | None,
        six: Attachment | None,
    ) -> Sequence[Held]:
        record = self._parts.catalog.resolve(out.network_id)
        addresses = four.endpoint.ip if four else "", six.endpoint.ip6 if six else ""
        try:
            held = self._parts.ports.acquire(request, addresses, self._parts.default_bind(record))
        except PortTaken as exc:
            raise Failed(
                f"{SETUP}: driver failed programming external connectivity on endpoint "
                f"{holding.row.name} ({out.endpoint.endpoint_id}): {exc}"
            ) from exc
        holding.held.extend(held)
        return held

    async def _open_relays(self, holding: _Holding) -> None:
        for held in holding.held:
            if held.relayed and held.port not in holding.relays:
                await self._open_relay(holding, held)

    async def _open_relay(self, holding: _Holding, held: Held) -> None:
        four, six = plan.targets(holding.row.attachments)
        if six and (four is None or ":" in held.port.host_ip):
            address = six.endpoint.ip6
        else:
            address = four.endpoint.ip if four else ""
        assert held.socket is not None
        # A descriptor of its own: the port stays held while the container changes networks, and the relay with it.
        relay = Relay(held.socket.dup(), address, held.port.container_port, self._parts.wall)
        holding.relays[held.port] = relay
        await relay.open()

    async def _close_relays(self, holding: _Holding, ports: Iterable[Port] | None = None) -> None:
        for port in list(holding.relays) if ports is None else list(ports):
            if (relay := holding.relays.pop(port, None)) is not None:
                await relay.close()

    def _forget_flows(self, row: Row, *, ended: bool) -> None:
        """UDP flows to these ports, or to a container that has ended, would go on as before while packets come."""
        udp = PROTOCOLS["udp"]
        ports = {port.host_port for port in row.ports if port.protocol == "udp"}
        try:
            if ports and ended:
                for attachment in row.attachments:
                    for address in attachment.addresses:
                        self._parts.wall.forget_answers(udp, address)
            elif ports:
                self._parts.wall.forget_port_flows(udp, ports)
        except OSError as exc:
            log.debug("UDP flows cannot be forgotten: %s", exc.strerror)

    async def change_ports(
        self, container_id: str, add: Sequence[PortRequest], remove: Sequence[Port]
    ) -> tuple[Port, ...]:
        """Publish and withdraw ports of a running container; all or nothing. What is published then.

        Raises Failed (a port is taken), NotFound (a port that is not published).
        """
        return await finish(self._change_ports(container_id, add, remove))

    async def _change_ports(
        self, container_id: str, add: Sequence[PortRequest], remove: Sequence[Port]
    ) -> tuple[Port, ...]:
        holding = self._holding(container_id)
        old = holding.row
        leaving = [held for held in holding.held if held.port in remove]
        if missing := [port for port in remove if port not in old.ports]:
            raise NotFound(f"port {missing[0].host_port}/{missing[0].protocol} of the host is not published")
        four, six = plan.targets(old.attachments)
        out = four or six
        if add and out is None:
            raise Conflict("no network of this container leads out: nothing can be published on it")
        async with AsyncExitStack() as undo:
            fresh = _Holding(row=old)
            undo.callback(self._parts.ports.release, fresh.held)
            for request in add:
                assert out is not None
                self._hold_port(fresh, request, out, four, six)
            kept = [held for held in holding.held if held not in leaving]
            wanted = tuple(each for each in old.wanted if not _is_for(each, remove))
            row = replace(old, ports=tuple(held.port for held in (*kept, *fresh.held)), wanted=(*wanted, *add))
            undo.push_async_callback(settle, self._rewrite, container_id, old)
            await settle(self._rewrite, container_id, row)
            undo.push_async_callback(self._close_relays, fresh)
            await self._open_relays(fresh)
            await settle(self._republish, old, row)
            undo.pop_all()
        await self._close_relays(holding, [held.port for held in leaving])
        self._parts.ports.release(leaving)
        holding.row, holding.held = row, [*kept, *fresh.held]
        holding.relays.update(fresh.relays)
        return row.ports

    def _rewrite(self, container_id: str, row: Row | None) -> None:
        kept = Put("endpoints", container_id, msgspec.json.encode(row)) if row else Delete("endpoints", container_id)
        self._parts.state.write(kept)

    def _republish(self, old: Row, new: Row) -> None:
        """Firewall entries from those of `old` to those of `new`, in one transaction. Blocking."""
        before, after = self._publications(old), self._publications(new)
        add = [each for each in after if each not in before]
        self._parts.wall.change(add=add, remove=[each for each in before if each not in after])
        self._forget_flows(replace(new, ports=tuple(each.port for each in add)), ended=False)

    # -- names

    async def rename(self, container_id: str, old: str, new: str) -> None:
        """A container has another name: it answers to that at once, and no more to the old one."""
        holding = self._holdings.get(container_id)
        if holding is None:
            return
        changed = tuple(
            replace(
                each,
                endpoint=replace(
                    each.endpoint, names=tuple(new if name == old else name for name in each.endpoint.names)
                ),
            )
            for each in holding.row.attachments
        )
        holding.row = replace(holding.row, attachments=changed, name=new)
        await settle(self._rewrite, container_id, holding.row)
        for attachment in changed:
            self._parts.naming.name(attachment)

    # -- a running container joins and leaves networks

    def _holding(self, container_id: str) -> _Holding:
        holding = self._holdings.get(container_id)
        if holding is None:
            raise Conflict(f"container {short(container_id)} has no network of its own")
        return holding

    async def join(
        self, container_id: str, record: NetworkRecord, wanted: EndpointRequest, netns_path: str
    ) -> tuple[Endpoint, tuple[Port, ...]]:
        """Attach a running container to one more network; its endpoint, and the ports published then.

        Raises Forbidden (attached already), Failed; then nothing is changed.
        """
        return await finish(self._join(container_id, record, wanted, netns_path))

    async def _join(
        self, container_id: str, record: NetworkRecord, wanted: EndpointRequest, netns_path: str
    ) -> tuple[Endpoint, tuple[Port, ...]]:
        known = self._holdings.get(container_id)  # none: it has had nothing but its loopback
        holding = known or _Holding(row=Row(attachments=(), name=next(iter(wanted.names), container_id)))
        old = holding.row
        if any(each.network_id == record.id for each in old.attachments):
            raise Forbidden(f"endpoint with name {old.name} already exists in network {record.name}")
        async with AsyncExitStack() as undo:
            attachment = self._reserve(undo, record, wanted, old.attachments)
            row = replace(old, attachments=(*old.attachments, attachment))
            namespace = await undo.enter_async_context(namespaces.inside(netns_path))
            undo.push_async_callback(settle, self._rewrite, container_id, old if known else None)
            await settle(self._rewrite, container_id, row)
            driver = self._parts.drivers[record.driver]
            undo.push_async_callback(settle, self._close_off, container_id, old if known else None)
            await settle(self._close_off, container_id, row)  # first: it runs, and could use what it has not to
            try:
                await settle(driver.attach, record, attachment.place(), namespace)
                undo.push_async_callback(settle, driver.detach, record, attachment.place(), namespace)
                undo.push_async_callback(settle, namespaces.set_default_routes, namespace, plan.routes(old.attachments))
                await settle(namespaces.set_default_routes, namespace, plan.routes(row.attachments))
            except OSError as exc:
                raise Failed(f"cannot connect to network {record.name}: {exc.strerror or exc}") from exc
            naming = self._parts.naming
            if naming.serves(container_id):
                undo.push_async_callback(naming.update, container_id, old)
            else:
                undo.push_async_callback(naming.stop_serving, container_id)
            undo.callback(naming.forget, attachment)
            await naming.show(container_id, row, namespace)
            undo.callback(setattr, holding, "row", old)
            holding.row = row
            undo.push_async_callback(self._back_to, holding, old)
            await self._follow_routes(holding, old)
            self._holdings[container_id] = holding
            undo.pop_all()
            await settle(_close, [namespace])
        await settle(self._rewrite, container_id, holding.row)
        return attachment.endpoint, holding.row.ports

    async def _follow_routes(self, holding: _Holding, old: Row) -> None:
        """Published ports lead to the network that leads out now."""
        if plan.targets(old.attachments) == plan.targets(holding.row.attachments):
            return
        if not any(plan.targets(old.attachments)):
            self._hold_ports(holding)
        await self._close_relays(holding)
        await settle(self._republish, old, holding.row)
        if any(plan.targets(holding.row.attachments)):
            await self._open_relays(holding)

    async def _back_to(self, holding: _Holding, old: Row) -> None:
        """Published ports as they were before `_follow_routes`, however far that came."""
        await self._close_relays(holding)
        if not any(plan.targets(old.attachments)):
            self._parts.ports.release(holding.held)
            holding.held.clear()
        await settle(self._republish, holding.row, old)
        holding.row = old
        await self._open_relays(holding)

    def _close_off(self, container_id: str, row: Row | None) -> None:
        """Egress policies of what it is on; None = of nothing. Blocking."""
        if row is None:
            self._parts.gates.open_up(container_id)
        else:
            self._parts.gates.close_off(container_id, row.attachments, row.name)

    async def leave(self, container_id: str, record: NetworkRecord, netns_path: str) -> tuple[Port, ...]:
        """Detach a running container from a network; what is published then. Raises NotFound, Failed."""
        return await finish(self._leave(container_id, record, netns_path))

    async def _leave(self, container_id: str, record: NetworkRecord, netns_path: str) -> tuple[Port, ...]:
        holding = self._holding(container_id)
        old = holding.row
        attachment = next((each for each in old.attachments if each.network_id == record.id), None)
        if attachment is None:
            raise NotFound(f"container {container_id} is not connected to network {record.name}")
        row = replace(old, attachments=tuple(each for each in old.attachments if each is not attachment))
        async with namespaces.inside(netns_path) as namespace:
            try:
                driver = self._parts.drivers[record.driver]
                await settle(driver.detach, record, attachment.place(), namespace)
                await settle(namespaces.set_default_routes, namespace, plan.routes(row.attachments))
            except OSError as exc:
                raise Failed(f"cannot disconnect from network {record.name}: {exc.strerror or exc}") from exc
        self._parts.naming.forget(attachment)
        holding.row = row
        await self._follow_routes(holding, old)
        if not any(plan.targets(row.attachments)):
            self._parts.ports.release(holding.held)
            holding.held.clear()
            holding.row = row = replace(row, ports=())
        await settle(self._close_off, container_id, row)
        await self._parts.naming.update(container_id, row)
        await settle(self._rewrite, container_id, holding.row)
        for address in attachment.addresses:
            self._parts.catalog.release(record.id, address)
        self._leave_network(record.id)
        return holding.row.ports

    # -- a container has ended

    def _undo(self, container_id: str, row: Row) -> None:
        """Firewall and row; idempotent, and never raises: what cannot be taken back is dropped at the next start."""
        try:
            self._parts.gates.open_up(container_id)
            self._parts.wall.withdraw(self._publications(row))
            self._forget_flows(row, ended=True)
        except (OSError, WherryError) as exc:
            log.warning("container %s: its published ports cannot be withdrawn: %s", short(container_id), exc)
        try:
            self._parts.state.write(Delete("endpoints", container_id))
        except WherryError as exc:
            log.warning("container %s: its endpoints cannot be forgotten: %s", short(container_id), exc)

    async def release(self, container_id: str) -> None:
        """Give back what a container held that has ended. Idempotent.

        Its interfaces go with its namespace: who holds the fd closes it.
        """
        holding = self._holdings.pop(container_id, None)
        if holding is None:
            return
        try:
            await self._parts.naming.hide(container_id, holding.row)
            await self._close_relays(holding)
            await settle(self._undo, container_id, holding.row)
        finally:
            self._parts.ports.release(holding.held)
            for attachment in holding.row.attachments:
                for address in attachment.addresses:
                    self._parts.catalog.release(attachment.network_id, address)
                self._leave_network(attachment.network_id)

    # -- the daemon starts and stops

    def stored(self, running: Iterable[str]) -> dict[str, Row]:
        """Rows of the containers that run; the others' are dropped. Blocking."""
        rows: dict[str, Row] = {}
        alive = set(running)
        for key, raw in self._parts.state.rows("endpoints").items():
            with suppress(msgspec.DecodeError):
                if key in alive:
                    rows[key] = msgspec.json.decode(raw, type=Row)
                    continue
            self._parts.state.write(Delete("endpoints", key))
        return rows

    def publications(self, rows: Iterable[Row]) -> list[Publication]:
        return [each for row in rows for each in self._publications(row)]

    def reattach(self, rows: Iterable[Row]) -> None:
        """The host's ends of interfaces, where they were lost. Blocking."""
        by_network: dict[str, list[Attachment]] = {}
        for row in rows:
            for attachment in row.attachments:
                by_network.setdefault(attachment.network_id, []).append(attachment)
        for network_id, attachments in by_network.items():
            record = self._parts.catalog.get(network_id)
            if record is not None:
                places = [each.place() for each in attachments]
                self._parts.drivers[record.driver].reattach(record, places)

    async def adopt(self, container_id: str, row: Row, netns_path: str) -> None:
        """Hold again what a running container has. A port that another program took meanwhile still reaches the
        container: the firewall comes first."""
        holding = _Holding(row=row)
        self._holdings[container_id] = holding
        for attachment in row.attachments:
            self._parts.catalog.uses[attachment.network_id] += 1
            for address in attachment.addresses:
                self._parts.catalog.adopt(attachment.network_id, address)
        four, six = plan.targets(row.attachments)
        addresses = four.endpoint.ip if four else "", six.endpoint.ip6 if six else ""
        for port in row.ports:
            try:
                holding.held.append(self._parts.ports.adopt(port, addresses))
            except (PortTaken, WherryError) as exc:
                log.warning("container %s: %s", short(container_id), exc)
        await self._open_relays(holding)
        try:
            await settle(self._close_off, container_id, row)
            async with namespaces.inside(netns_path) as namespace:
                await self._parts.naming.show(container_id, row, namespace)
        except (OSError, WherryError) as exc:
            log.warning("container %s: its names are not resolved: %s", short(container_id), exc)

    async def let_go(self) -> None:
        """Close sockets, relays and resolvers; forget what is held. Containers keep their interfaces."""
        for holding in self._holdings.values():
            await self._close_relays(holding)
            self._parts.ports.release(holding.held)
        self._holdings.clear()
        await self._parts.naming.close_all()

    def on(self, network_id: str) -> list[tuple[str, str]]:
        """Name and endpoint id of the running containers on a network."""
        return [
            (holding.row.name, each.endpoint.endpoint_id)
            for holding in self._holdings.values()
            for each in holding.row.attachments
            if each.network_id == network_id
        ]

    def held(self, container_id: str) -> tuple[tuple[Endpoint, ...], tuple[Port, ...]] | None:
        holding = self._holdings.get(container_id)
        return (tuple(each.endpoint for each in holding.row.attachments), holding.row.ports) if holding else None

    def attachments(self, container_id: str) -> Sequence[Attachment]:
        return self._holding(container_id).row.attachments


def _is_for(request: PortRequest, ports: Sequence[Port]) -> bool:
    return any(
        request.container_port == port.container_port
        and request.protocol == port.protocol
        and (not request.first or request.first <= port.host_port <= request.last)
        for port in ports
    )


def _mac(asked: str, ip: str, endpoint_id: str) -> str:
    if asked:
        return ipam.parse_mac(asked)
    if ip:
        return ipam.mac_of(ip)
    return "02:42:" + bytes.fromhex(endpoint_id[:8]).hex(":")


def _close(made: list[Namespace]) -> None:
    while made:
        namespaces.close(made.pop())
