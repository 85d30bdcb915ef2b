"""Networks and containers' interfaces as drivers are told of them."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterator, Sequence

from netkit import make_socket

from wherry.kernel import netlink
from wherry.kernel.netlink import Link, Netlink
from wherry.network.drivers import namespaces
from wherry.network.places import Namespace, Place
from wherry.network.records import NetworkRecord, Subnet

QUICK = 0.3  # s until a packet that must not come is given up


def network(
    *subnets: str,
    driver: str = "bridge",
    name: str = "web",
    letter: str = "a",
    internal: bool = False,
    **options: str,
) -> NetworkRecord:
    """Gateways are the first addresses; options without their com.docker.network., `_` for the dots."""
    pools = [ipaddress.ip_network(subnet) for subnet in subnets]
    return NetworkRecord(
        id=letter * 64,
        name=name,
        driver=driver,
        created=1,
        subnets=[Subnet(subnet=str(pool), gateway=str(pool[1])) for pool in pools],
        ipv4=any(pool.version == 4 for pool in pools),
        ipv6=any(pool.version == 6 for pool in pools),
        internal=internal,
        options=options,
    )


def place(number: int, *addresses: str, interface: str = "eth0", sysctls: Sequence[tuple[str, str]] = ()) -> Place:
    return Place(
        host_name=f"veth{number:07d}",
        interface=interface,
        mac=f"02:42:00:00:00:{number:02x}",
        addresses=[ipaddress.ip_interface(address) for address in addresses],
        sysctls=sysctls,
    )


@contextlib.contextmanager
def container() -> Iterator[Namespace]:
    made = namespaces.empty()
    try:
        yield made
    finally:
        namespaces.close(made)


def reaches(source: int | None, target: int | None, address: str, port: int = 8080) -> bool:
    """Whether a server in `target` can be called from `source` at its address; None is the host."""
    six = ":" in address
    with make_socket(target, six=six) as server, make_socket(source, six=six) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        client.settimeout(QUICK)
        try:
            client.connect((address, port))
        except OSError:
            return False
        return True


def addresses_of(name: str, nl: Netlink | None = None) -> set[str]:
    """Without the link-local ones that come by themselves."""
    with contextlib.ExitStack() as stack:
        nl = nl or stack.enter_context(Netlink())
        link = netlink.find_link(nl, name)
        assert link is not None, f"no interface {name}"
        return {
            str(each.interface)
            for version in (4, 6)
            for each in netlink.addresses(nl, version)
            if each.index == link.index and not each.interface.is_link_local
        }


def link_of(name: str, nl: Netlink | None = None) -> Link | None:
    with contextlib.ExitStack() as stack:
        return netlink.find_link(nl or stack.enter_context(Netlink()), name)


def default_routes(inside: Netlink, version: int) -> list[tuple[str, str]]:
    """Interface and gateway."""
    names = {link.index: link.name for link in netlink.links(inside)}
    return [
        (names[route.index], route.gateway)
        for route in netlink.main_routes(inside, version)
        if not route.destination.prefixlen
    ]
