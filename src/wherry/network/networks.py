"""Networks: the default ones (bridge, host, none), and the sandboxes of running containers on them.

A sandbox lives as long as the network namespace whose fd `connect` returns. What the host keeps for it besides (an
address, published ports, entries of the firewall) is held by a row of state table `endpoints`, written before the
effects, and given back by `release`. A row whose container does not run at start is dropped; the firewall's table is
then written anew from the rows that are left, so nothing of the dropped one remains.
Async verbs, called from the event loop; those about one container under that container's lock.
"""

import ipaddress
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from wherry.aio import settle
from wherry.errors import Conflict, Failed, InvalidParameter, NotFound, WherryError
from wherry.ids import ContainerID, generate, is_prefix, short
from wherry.kernel.nftables import Element
from wherry.network import bridge, documents, ipam
from wherry.network.bridge import Attachment, BridgeConfig
from wherry.network.documents import NetworkRecord
from wherry.network.endpoint import Endpoint, Port
from wherry.network.firewall import BridgeRules, Firewall, published_element
from wherry.network.ports import ANY4, PROTOCOLS, Held, HostPorts, PortRequest, PortTaken
from wherry.network.relay import Relay
from wherry.state import Change, Delete, Put, State

log = logging.getLogger(__name__)

BRIDGE, HOST, NONE = "bridge", "host", "none"
DRIVERS = {BRIDGE: "bridge", HOST: "host", NONE: "null"}
FORWARDING_KEY = "network/forwarding"  # in table settings: the boot in which we made the host a router
INSTANCE_LIMIT = bridge.NAME_LIMIT - len("wh-")
_INSTANCE = re.compile(r"[a-z0-9]+\Z")
_SETUP = "failed to set up container networking"  # how Docker's message begins


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The daemon's flags about networks. The `dns` ones are for `files.resolv_conf`."""

    instance: str = ""  # tells several daemons of a host apart: part of the bridge's and the firewall table's names
    bridge: str = ""  # "" = our own, "none" = no default bridge, else an existing one
    bip: str = ""  # 172.31.0.1/24
    address_pools: Sequence[tuple[str, int]] = ipam.DEFAULT_POOLS
    mtu: int = 1500
    ip_forward: bool = True
    ip_masq: bool = True
    icc: bool = True
    default_bind: str = ANY4
    dns: Sequence[str] = ()
    dns_search: Sequence[str] = ()
    dns_options: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRequest:
    mode: str = BRIDGE  # bridge, host, none; "" and "default" are the default network
    name: str = ""  # the container's, for error messages
    ports: Sequence[PortRequest] = ()
    ip: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    netns: int | None  # fd, which the caller closes; None = the host's own namespace
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Value in table `endpoints`: what a container on the bridge holds."""

    endpoint: Endpoint
    veth: str
    ports: tuple[Port, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Holding:
    row: Row
    held: Sequence[Held]
    relays: Sequence[Relay] = ()


class Networks:
    def __init__(self, config: NetworkConfig, state: State) -> None:
        """Raises InvalidParameter for a wrong flag; touches nothing before `start`."""
        _check(config)
        self.config = config
        self._state = state
        self._pools = ipam.parse_pools(config.address_pools)
        self._bip = ipam.parse_bip(config.bip) if config.bip else None
        self._driver = _driver(config)
        self._firewall = Firewall(f"wherry_{config.instance}" if config.instance else "wherry")
        self._ports = HostPorts(config.default_bind)
        self._pool: ipam.Pool | None = None
        self._records: dict[str, NetworkRecord] = {}  # by name
        self._holdings: dict[str, _Holding] = {}  # by container id
        self._routed_loopback = False  # we switched route_localnet on

    # -- start and stop

    async def start(self, running: Mapping[ContainerID, Sequence[Port]]) -> None:
        """Make or adopt bridge and firewall, take over what the containers in `running` hold, drop every other row.

        Idempotent. Raises Failed, NotSupported, InvalidParameter.
        """
        await self._let_go()
        rows = await settle(self._load, running)
        try:
            await settle(self._prepare, rows)
        except OSError as exc:
            raise Failed(f"cannot set up the default bridge network: {exc.strerror}") from exc
        for container_id, row in rows.items():
            await self._adopt(container_id, row)

    def _load(self, running: Mapping[ContainerID, Sequence[Port]]) -> dict[str, Row]:
        """Read the state; rows of containers that run."""
        records = [msgspec.json.decode(raw, type=NetworkRecord) for raw in self._state.rows("networks").values()]
        self._records = {record.name: record for record in records if record.name in DRIVERS}
        stored = self._state.rows("endpoints")
        changes: list[Change] = [Delete("endpoints", key) for key in stored if key not in running]
        for name, driver in DRIVERS.items():
            if name not in self._records:
                record = NetworkRecord(id=generate(), name=name, driver=driver, created=time.time_ns())
                self._records[name] = record
                changes.append(Put("networks", record.id, msgspec.json.encode(record)))
        if changes:
            self._state.write(*changes)
        return {key: msgspec.json.decode(raw, type=Row) for key, raw in stored.items() if key in running}

    def _prepare(self, rows: Mapping[str, Row]) -> None:
        """Bridge, sysctls, firewall. Blocking."""
        if self._driver is None:
            self._pool = None
            return
        record = self._records[BRIDGE]
        last = ipaddress.IPv4Interface(record.interface) if record.interface else None
        in_use = [ipaddress.IPv4Address(row.endpoint.ip) for row in rows.values()]
        interface = bridge.prepare(self._driver, bip=self._bip, last=last, pools=self._pools, in_use=in_use)
        bridge.reattach(self._driver, [(row.veth, row.endpoint.mac) for row in rows.values()])
        self._pool = ipam.Pool(interface)
        record = replace(record, interface=str(interface), options=self._options(self._driver))
        if record != self._records[BRIDGE]:
            self._state.write(Put("networks", record.id, msgspec.json.encode(record)))
            self._records[BRIDGE] = record
        for address in in_use:
            if address in interface.network:
                self._pool.reserve(address)
        self._routed_loopback = bridge.route_loopback(self._driver.name) or self._routed_loopback
        subnets = {interface.network} | {
            ipaddress.IPv4Interface(f"{row.endpoint.ip}/{row.endpoint.prefix}").network for row in rows.values()
        }
        # the firewall first: from the moment the host routes, it must be guarded
        guarded = self._guards()
        rules = BridgeRules(
            bridge=self._driver.name,
            subnets=sorted(subnets),
            masquerade=self.config.ip_masq,
            icc=self.config.icc,
        )
        published = [element for row in rows.values() for element in _elements(row)]
        self._firewall.load([rules], published, guarded=guarded)
        if self.config.ip_forward:
            bridge.set_forwarding(enable=True)

    def _guards(self) -> bool:
        """True when the host routes only because of us: since now, an earlier run, or another daemon of ours.

        Remembered in the state for as long as the host is up: after that its settings are its own again.
        """
        if not self.config.ip_forward:
            return False
        boot = _boot_id()
        guarded = (
            not bridge.forwarding()
            or self._state.rows("settings").get(FORWARDING_KEY) == boot
            or self._firewall.others()[1]
        )
        if guarded:
            self._state.write(Put("settings", FORWARDING_KEY, boot))
        return guarded

    def _options(self, driver: BridgeConfig) -> dict[str, str]:
        prefix = "com.docker.network"
        return {
            f"{prefix}.bridge.default_bridge": "true",
            f"{prefix}.bridge.enable_icc": str(self.config.icc).lower(),
            f"{prefix}.bridge.enable_ip_masquerade": str(self.config.ip_masq).lower(),
            f"{prefix}.bridge.host_binding_ipv4": self.config.default_bind,
            f"{prefix}.bridge.name": driver.name,
            f"{prefix}.driver.mtu": str(driver.mtu),
        }

    async def _adopt(self, container_id: str, row: Row) -> None:
        """Hold a running container's ports again. One that another program took meanwhile still reaches the container:
        the firewall comes first."""
        held: list[Held] = []
        relays: list[Relay] = []
        for port in row.ports:
            try:
                held.append(self._ports.adopt(port, row.endpoint.ip))
            except (PortTaken, WherryError) as exc:
                log.warning("container %s: %s", short(container_id), exc)
                continue
            if held[-1].relayed:
                relays.append(_relay(held[-1], row.endpoint.ip))
                await relays[-1].open()
        self._holdings[container_id] = _Holding(row=row, held=held, relays=relays)

    async def _let_go(self) -> None:
        """Close sockets and relays; forget what is held."""
        for holding in self._holdings.values():
            for relay in holding.relays:
                await relay.close()
            self._ports.release(holding.held)
        self._holdings.clear()

    async def stop(self, *, keep: bool) -> None:
        """Close what the process holds. Without `keep` (nothing runs) also take bridge, firewall, sysctls back."""
        await self._let_go()
        try:
            if not keep and self._driver is not None:
                await settle(self._take_back, self._driver)
        except (OSError, WherryError) as exc:
            log.warning("cannot take the default bridge network down: %s", exc)
        finally:
            await settle(self._firewall.close)

    def _take_back(self, driver: BridgeConfig) -> None:
        with ExitStack() as steps:  # each is tried, whatever becomes of the others; in reverse order
            steps.callback(bridge.remove, driver)
            if driver.foreign and self._routed_loopback:
                steps.callback(bridge.route_loopback, driver.name, enable=False)
            steps.callback(self._firewall.remove)
            steps.callback(self._stop_forwarding)
        self._routed_loopback = False

    def _stop_forwarding(self) -> None:
        """The last of us switches it off."""
        if self._state.rows("settings").get(FORWARDING_KEY) != _boot_id():
            return
        if not self._firewall.others()[0] and not bridge.docker_present():
            bridge.set_forwarding(enable=False)
        self._state.write(Delete("settings", FORWARDING_KEY))

    # -- sandboxes

    def validate(self, request: SandboxRequest) -> None:
        """What can be refused before anything is done. Raises InvalidParameter, NotFound, Conflict."""
        mode = self._resolve(request.mode)
        if request.ip:
            raise InvalidParameter(
                f"invalid config for network {mode}: invalid endpoint settings:\n"
                "user specified IP address is supported on user defined networks only"
            )
        if request.mac:
            ipam.parse_mac(request.mac)
            if mode == HOST:
                raise Conflict("conflicting options: mac-address and the network mode")

    def _resolve(self, mode: str) -> str:
        """The network's name. Raises NotFound in Docker's words."""
        if mode in ("", "default"):
            return NONE if self._driver is None else BRIDGE
        if mode in (HOST, NONE):
            return mode
        return self._find(mode).name

    async def connect(self, container_id: str, request: SandboxRequest) -> Sandbox:
        """A container's network stack: a new namespace with its interfaces, addresses and published ports.

        A container that is connected already is released first. Raises InvalidParameter, NotFound, NotSupported, and
        Failed where Docker answers 500 (address or port taken); then nothing is held.
        """
        self.validate(request)
        await self.release(container_id)
        mode = self._resolve(request.mode)
        if mode == BRIDGE:
            return await self._connect_bridge(container_id, request)
        endpoint = self._endpoint(mode)
        if mode == HOST:
            return Sandbox(netns=None, endpoints=(endpoint,))
        made: list[int] = []
        async with AsyncExitStack() as undo:
            undo.callback(_close, made)
            await settle(lambda: made.append(bridge.empty_netns()))
            undo.pop_all()
        return Sandbox(netns=made[0], endpoints=(endpoint,))

    def _endpoint(self, network: str) -> Endpoint:
        """An attachment without an address."""
        network_id = self._records[network].id if network in self._records else ""
        return Endpoint(
            network=network, network_id=network_id, endpoint_id=generate(), mac="", ip="", prefix=0, gateway=""
        )

    async def _connect_bridge(self, container_id: str, request: SandboxRequest) -> Sandbox:
        driver, pool = self._driver, self._pool
        if driver is None or pool is None:
            raise NotFound(f"network {BRIDGE} not found")
        made: list[int] = []
        async with AsyncExitStack() as undo:
            address = pool.allocate()
            undo.callback(pool.release, address)
            endpoint = replace(
                self._endpoint(BRIDGE),
                mac=ipam.parse_mac(request.mac) if request.mac else ipam.mac_of(address),
                ip=str(address),
                prefix=pool.subnet.prefixlen,
                gateway=str(pool.gateway.ip),
            )
            held: list[Held] = []
            undo.callback(self._ports.release, held)
            self._acquire(request, endpoint, held)
            ports = tuple(one.port for one in held)
            row = Row(endpoint=endpoint, veth=f"veth{endpoint.endpoint_id[:7]}", ports=ports)
            undo.callback(_close, made)
            undo.push_async_callback(settle, self._undo, container_id, row)
            try:
                await settle(self._effect, driver, container_id, row, made)
            except OSError as exc:
                raise Failed(f"{_SETUP}: {exc.strerror or exc}") from exc
            relays = [_relay(one, endpoint.ip) for one in held if one.relayed]
            for relay in relays:
                undo.push_async_callback(relay.close)
                await relay.open()
            self._holdings[container_id] = _Holding(row=row, held=held, relays=relays)
            undo.pop_all()
        return Sandbox(netns=made[0], endpoints=(endpoint,), ports=ports)

    def _acquire(self, request: SandboxRequest, endpoint: Endpoint, held: list[Held]) -> None:
        """Bind all requested ports, adding to `held` as they come. Microseconds each."""
        for wanted in request.ports:
            try:
                held.extend(self._ports.acquire(wanted, endpoint.ip))
            except PortTaken as exc:
                raise Failed(
                    f"{_SETUP}: driver failed programming external connectivity on endpoint "
                    f"{request.name} ({endpoint.endpoint_id}): {exc}"
                ) from exc

    def _effect(self, driver: BridgeConfig, container_id: str, row: Row, made: list[int]) -> None:
        """Row, namespace, firewall; blocking. Whatever part of it was done, `_undo` and closing `made` takes back."""
        self._state.write(Put("endpoints", container_id, msgspec.json.encode(row)))
        endpoint = row.endpoint
        attachment = Attachment(
            veth=row.veth,
            mac=endpoint.mac,
            interface=ipaddress.IPv4Interface(f"{endpoint.ip}/{endpoint.prefix}"),
            gateway=ipaddress.IPv4Address(endpoint.gateway),
        )
        bridge.attach(driver, attachment, made.append)
        self._firewall.publish(_elements(row))
        self._forget_flows(row, ended=False)

    def _forget_flows(self, row: Row, *, ended: bool) -> None:
        """UDP flows to these ports, or to a container that has ended, would go on as before while packets come."""
        udp = PROTOCOLS["udp"]
        ports = {port.host_port for port in row.ports if port.protocol == "udp"}
        try:
            if ports and ended:
                self._firewall.forget_answers(udp, row.endpoint.ip)
            elif ports:
                self._firewall.forget_port_flows(udp, ports)
        except OSError as exc:
            log.debug("UDP flows cannot be forgotten: %s", exc.strerror)

    def _undo(self, container_id: str, row: Row) -> None:
        """Firewall and row; idempotent, and never raises: what cannot be taken back is dropped at the next start."""
        try:
            self._firewall.withdraw(_elements(row))
            self._forget_flows(row, ended=True)
        except (OSError, WherryError) as exc:
            log.warning("container %s: its published ports cannot be withdrawn: %s", short(container_id), exc)
        try:
            self._state.write(Delete("endpoints", container_id))
        except WherryError as exc:
            log.warning("container %s: its endpoint cannot be forgotten: %s", short(container_id), exc)

    async def release(self, container_id: str) -> None:
        """Give back address, ports and firewall entries of a container that has ended. Idempotent.

        Its interfaces go with its namespace: who holds the fd closes it.
        """
        holding = self._holdings.pop(container_id, None)
        if holding is None:
            return
        try:
            for relay in holding.relays:
                await relay.close()
            await settle(self._undo, container_id, holding.row)
        finally:
            self._ports.release(holding.held)
            if self._pool is not None:
                self._pool.release(ipaddress.IPv4Address(holding.row.endpoint.ip))

    # -- documents

    @property
    def bridge_gateway(self) -> str:
        """The host as containers on the default bridge see it (`host-gateway`); "" without a bridge."""
        return str(self._pool.gateway.ip) if self._pool is not None else ""

    def _visible(self) -> Iterable[NetworkRecord]:
        return (record for name, record in self._records.items() if name != BRIDGE or self._driver is not None)

    def _find(self, name_or_id: str) -> NetworkRecord:
        """By name, id or unambiguous beginning of an id. Raises NotFound, InvalidParameter in Docker's words."""
        records = list(self._visible())
        for record in records:
            if name_or_id in (record.name, record.id):
                return record
        matches = [record for record in records if record.id.startswith(name_or_id)] if is_prefix(name_or_id) else []
        if len(matches) > 1:
            raise InvalidParameter(f"network {name_or_id} is ambiguous ({len(matches)} matches found on ID prefix)")
        if not matches:
            raise NotFound(f"network {name_or_id} not found")
        return matches[0]

    def _document(
        self, record: NetworkRecord, containers: Mapping[str, tuple[str, Sequence[Endpoint]]]
    ) -> dict[str, object]:
        pool = self._pool if record.name == BRIDGE else None
        return documents.network(
            record,
            subnet=str(pool.subnet) if pool else "",
            gateway=str(pool.gateway.ip) if pool else "",
            containers=containers,
        )

    def inspect(self, name_or_id: str, containers: Mapping[str, tuple[str, Sequence[Endpoint]]]) -> dict[str, object]:
        """Docker's document of one network; `containers`: id to name and endpoints, of those that run."""
        return self._document(self._find(name_or_id), containers)

    def list(self) -> list[dict[str, object]]:
        """Docker's documents of all networks, by name, without their containers."""
        return [self._document(record, {}) for record in sorted(self._visible(), key=lambda record: record.name)]


def _check(config: NetworkConfig) -> None:
    if config.instance and (not _INSTANCE.match(config.instance) or len(config.instance) > INSTANCE_LIMIT):
        raise InvalidParameter(
            f"invalid instance tag {config.instance!r}: at most {INSTANCE_LIMIT} lower-case letters and digits"
        )
    if config.bridge != NONE and len(config.bridge.encode()) > bridge.NAME_LIMIT:
        raise InvalidParameter(f"invalid bridge name {config.bridge!r}: longer than {bridge.NAME_LIMIT} bytes")
    if config.bridge and config.bip:
        raise InvalidParameter("You specified -b & --bip, mutually exclusive options. Please specify only one")
    if not 68 <= config.mtu <= 65535:
        raise InvalidParameter(f"invalid MTU {config.mtu}: not between 68 and 65535")
    try:
        ipaddress.IPv4Address(config.default_bind)
    except ValueError as exc:
        raise InvalidParameter(f"invalid default address for published ports (--ip): {config.default_bind!r}") from exc


def _driver(config: NetworkConfig) -> BridgeConfig | None:
    if config.bridge == NONE:
        return None
    own = f"wh-{config.instance}" if config.instance else "wherry0"
    name = config.bridge or own
    return BridgeConfig(name=name, foreign=name != own, mtu=config.mtu, icc=config.icc)


def _elements(row: Row) -> list[Element]:
    return [published_element(port, row.endpoint.ip) for port in row.ports if ":" not in port.host_ip]


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _relay(held: Held, target: str) -> Relay:
    assert held.socket is not None
    return Relay(held.socket, target, held.port.container_port)


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
