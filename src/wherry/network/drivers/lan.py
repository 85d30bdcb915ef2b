"""The drivers macvlan and ipvlan: containers directly on the network behind an interface of the host, its parent.

`-o parent=eth0` names the parent; `eth0.10` is VLAN 10 of eth0, made when it is not there. Without a parent the
network's containers reach only each other, by a dummy interface. What we made carries the network's id as its alias
and goes with the network. A parent serves one network of each driver.
Blocking.
"""

import errno
from collections.abc import Sequence
from contextlib import suppress

from wherry.errors import Failed, Forbidden, InvalidParameter, NotSupported
from wherry.kernel import links, netlink
from wherry.kernel.links import IpvlanFlag, IpvlanMode, MacvlanMode
from wherry.kernel.netlink import Link, Message, Netlink
from wherry.network.drivers import options
from wherry.network.drivers.interface import alias_of, check_place, configure
from wherry.network.places import Namespace, Place
from wherry.network.records import IPVLAN, MACVLAN, NetworkRecord

PARENT = "parent"
FIRST_VLAN, LAST_VLAN = 1, 4094
CONFIG = {"dummy": "CONFIG_DUMMY", "vlan": "CONFIG_VLAN_8021Q", MACVLAN: "CONFIG_MACVLAN", IPVLAN: "CONFIG_IPVLAN"}
MODULES = {"vlan": "8021q"}  # where it is not called as the kind of link
MACVLAN_MODES = {mode.name.lower(): mode for mode in MacvlanMode}
IPVLAN_MODES = {mode.name.lower(): mode for mode in IpvlanMode}
IPVLAN_FLAGS = {flag.name.lower(): flag for flag in IpvlanFlag}


def parent_of(network: NetworkRecord) -> str:
    """The host's interface; a dummy's name without the option."""
    return network.options.get(PARENT) or f"dm-{network.id[:12]}"


def leads_out(network: NetworkRecord) -> bool:
    """False where containers only reach each other, and so have no default route."""
    return not network.internal and bool(network.options.get(PARENT))


def on_link(network: NetworkRecord) -> bool:
    """Where the kernel routes by itself and there is nobody to ask for an address: ipvlan's l3 modes."""
    return network.driver == IPVLAN and leads_out(network) and network.options.get("ipvlan_mode", "l2") != "l2"


def split_vlan(parent: str) -> tuple[str, int]:
    """`eth0.10` to the interface and the tag. Raises InvalidParameter in Docker's words."""
    name, _, text = parent.rpartition(".")
    if not name or "." in name:
        raise InvalidParameter(f"invalid subinterface vlan name {parent}, example formatting is eth0.10")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidParameter(f"unable to parse a valid vlan id from: {text} (ex. eth0.10 for vlan 10)")
    if not FIRST_VLAN <= int(text) <= LAST_VLAN:
        raise InvalidParameter(f"vlan id must be between {FIRST_VLAN}-{LAST_VLAN}, received: {int(text)}")
    return name, int(text)


class LanDriver:
    """What both have in common."""

    kind: str

    def __init__(self) -> None:
        self._users: dict[str, str] = {}  # parent to the network that has it

    # -- the host's side

    def check(self, network: NetworkRecord) -> None:
        self._check_modes(network)
        options.mtu(network)
        parent = parent_of(network)
        options.check_interface_name(parent, "parent interface")
        if parent == "lo":
            raise InvalidParameter(f"loopback interface is not a valid {self.kind} parent link")
        self._refuse_taken(parent, network)
        with Netlink() as nl:
            _require(nl, self.kind, network)
            if not network.options.get(PARENT):
                return
            if netlink.find_link(nl, parent) is None:
                under, _ = split_vlan(parent)
                if netlink.find_link(nl, under) is None:
                    raise InvalidParameter(f"-o parent interface was not found on the host: {under}")
                _require(nl, "vlan", network)

    def _check_modes(self, network: NetworkRecord) -> None:
        raise NotImplementedError

    def _refuse_taken(self, parent: str, network: NetworkRecord) -> None:
        user = self._users.get(parent, network.id)
        if user != network.id:
            raise Forbidden(f"network dm-{user[:12]} is already using parent interface {parent}")

    def create(self, network: NetworkRecord) -> None:
        parent = parent_of(network)
        self._refuse_taken(parent, network)
        with Netlink() as nl:
            if netlink.find_link(nl, parent) is None:
                self._make_parent(nl, parent, network)
        self._users[parent] = network.id

    def _make_parent(self, nl: Netlink, parent: str, network: NetworkRecord) -> None:
        if network.options.get(PARENT):
            under, tag = split_vlan(parent)
            below = netlink.find_link(nl, under)
            if below is None:
                raise Failed(f"-o parent interface was not found on the host: {under}")
            kind, message = "vlan", links.create_vlan(parent, parent=below.index, tag=tag)
        else:
            kind, message = "dummy", links.create_dummy(parent)
        try:
            nl.transact(message)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                raise _unsupported(kind, network) from exc
            raise
        made = netlink.find_link(nl, parent)
        if made is None:
            raise Failed(f"interface {parent} vanished while it was set up")
        nl.transact(links.set_alias(made.index, parent, alias_of(network)))
        with suppress(OSError):  # a VLAN of an interface that is down: `attach` tells
            nl.transact(netlink.set_up(made.index, parent))

    def remove(self, network: NetworkRecord) -> None:
        parent = parent_of(network)
        if self._users.get(parent) == network.id:
            del self._users[parent]
        with Netlink() as nl:
            link = netlink.find_link(nl, parent)
            if link is not None and (link.alias == alias_of(network) or not network.options.get(PARENT)):
                nl.transact(netlink.delete_link(parent))

    # -- containers

    def attach(self, network: NetworkRecord, place: Place, namespace: Namespace) -> None:
        check_place(place)
        with Netlink() as nl:
            parent = netlink.find_link(nl, parent_of(network))
            if parent is None:
                raise Failed(f"parent interface {parent_of(network)} of network {network.name} is gone")
            if not parent.up:
                raise Failed(
                    f"parent interface {parent.name} of network {network.name} is down: ip link set {parent.name} up"
                )
            try:
                nl.transact(self._interface(network, place, parent, namespace.fd))
            except OSError as exc:
                raise self._explained(exc, network, parent) from exc
        try:
            configure(place, namespace)
        except BaseException:
            self.detach(network, place, namespace)
            raise

    def _interface(self, network: NetworkRecord, place: Place, parent: Link, netns: int) -> Message:
        raise NotImplementedError

    def _explained(self, exc: OSError, network: NetworkRecord, parent: Link) -> Exception:
        if exc.errno == errno.EOPNOTSUPP:
            return _unsupported(self.kind, network)
        if exc.errno == errno.EBUSY:
            return Failed(
                f"cannot attach to parent interface {parent.name} of network {network.name}: it is in use by a bridge, "
                "a bond, or a network of another driver"
            )
        return exc

    def detach(self, network: NetworkRecord, place: Place, namespace: Namespace) -> None:
        try:
            namespace.netlink.transact(netlink.delete_link(place.interface))
        except OSError as exc:
            if exc.errno != errno.ENODEV:
                raise

    def reattach(self, network: NetworkRecord, places: Sequence[Place]) -> None:
        """Nothing of a running container's is on the host's side: an interface lives and dies with its parent."""


class MacvlanDriver(LanDriver):
    kind = MACVLAN

    def _check_modes(self, network: NetworkRecord) -> None:
        self._mode(network)

    def _mode(self, network: NetworkRecord) -> MacvlanMode:
        name = network.options.get("macvlan_mode") or "bridge"
        mode = MACVLAN_MODES.get(name)
        if mode is None:
            raise InvalidParameter(
                f"requested macvlan mode '{name}' is not valid, 'bridge' mode is the macvlan driver default"
            )
        return mode

    def _interface(self, network: NetworkRecord, place: Place, parent: Link, netns: int) -> Message:
        return links.create_macvlan(
            place.interface,
            parent=parent.index,
            mode=self._mode(network),
            mac=place.mac,
            netns=netns,
            mtu=options.mtu(network, default=0),
        )

    def _explained(self, exc: OSError, network: NetworkRecord, parent: Link) -> Exception:
        if exc.errno in (errno.EINVAL, errno.EBUSY) and self._mode(network) is MacvlanMode.PASSTHRU:
            return Failed(
                f"cannot attach to parent interface {parent.name} of network {network.name}: in mode passthru it "
                "serves one container only"
            )
        return super()._explained(exc, network, parent)


class IpvlanDriver(LanDriver):
    kind = IPVLAN

    def _check_modes(self, network: NetworkRecord) -> None:
        self._mode(network)
        self._flag(network)

    def _mode(self, network: NetworkRecord) -> IpvlanMode:
        name = network.options.get("ipvlan_mode") or "l2"
        mode = IPVLAN_MODES.get(name)
        if mode is None:
            raise InvalidParameter(
                f"requested ipvlan mode '{name}' is not valid, 'l2' mode is the ipvlan driver default"
            )
        return mode

    def _flag(self, network: NetworkRecord) -> IpvlanFlag:
        name = network.options.get("ipvlan_flag") or "bridge"
        flag = IPVLAN_FLAGS.get(name)
        if flag is None:
            raise InvalidParameter(
                f"requested ipvlan flag '{name}' is not valid, 'bridge' is the ipvlan driver default"
            )
        return flag

    def _interface(self, network: NetworkRecord, place: Place, parent: Link, netns: int) -> Message:
        return links.create_ipvlan(
            place.interface,
            parent=parent.index,
            mode=self._mode(network),
            flag=self._flag(network),
            netns=netns,
            mtu=options.mtu(network, default=0),
        )


def _require(nl: Netlink, kind: str, network: NetworkRecord) -> None:
    if not links.has_kind(nl, kind):
        raise _unsupported(kind, network)


def _unsupported(kind: str, network: NetworkRecord) -> NotSupported:
    remedy = "; or name a parent interface with -o parent=eth0" if kind == "dummy" else ""
    module = MODULES.get(kind, kind)
    return NotSupported(
        f"operation not supported: network {network.name} needs the kernel's module {module} ({CONFIG[kind]}), which "
        f"this host does not have: install or load it (modprobe {module}){remedy}"
    )
