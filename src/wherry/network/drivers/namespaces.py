"""Network namespaces of containers: made, entered, and their way out. Blocking, `inside` aside."""

import errno
import ipaddress
import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from wherry.aio import settle
from wherry.errors import Failed
from wherry.kernel import netlink
from wherry.kernel.netlink import Netlink, Route
from wherry.kernel.netns import in_netns, new_netns
from wherry.network.drivers import sysctls
from wherry.network.places import IPAddress, Namespace

METRIC6 = 1024  # the kernel's, of an IPv6 route made without one


def empty() -> Namespace:
    """A new namespace with loopback only, up. 0.8 ms. Raises OSError."""
    fd, inside = new_netns(_loopback)
    return Namespace(fd, inside)


def _loopback() -> Netlink:
    """In a new namespace: no IPv6 on interfaces to come (a driver turns it on where its network has it), loopback up.

    The socket stays in the namespace, so that what follows needs no entering.
    """
    with suppress(FileNotFoundError):  # a kernel without IPv6
        (sysctls.ROOT / "ipv6/conf/default/disable_ipv6").write_text("1")
    inside = Netlink()
    try:
        inside.transact(netlink.set_up(1, "lo"))
    except BaseException:
        inside.close()
        raise
    return inside


def enter(where: str | int) -> Namespace:
    """A namespace that is there: path (/proc/<pid>/ns/net) or fd, which stays the caller's. Raises OSError."""
    fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC) if isinstance(where, str) else os.dup(where)
    try:
        return Namespace(fd, in_netns(fd, Netlink))
    except BaseException:
        os.close(fd)
        raise


def close(namespace: Namespace) -> None:
    """Idempotent."""
    namespace.netlink.close()
    fd, namespace.fd = namespace.fd, -1
    if fd >= 0:
        os.close(fd)


class inside:  # noqa: N801 -- reads as the context manager it is
    """`async with inside(path) as namespace:` enter a namespace and leave it again."""

    def __init__(self, where: str | int) -> None:
        self._where = where
        self._entered: list[Namespace] = []

    async def __aenter__(self) -> Namespace:
        try:
            await settle(lambda: self._entered.append(enter(self._where)))
        except BaseException:
            self._close()
            raise
        return self._entered[0]

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for namespace in self._entered:
            close(namespace)


def set_default_routes(namespace: Namespace, via: Sequence[tuple[str, str]]) -> None:
    """The default routes are these, (interface, gateway), at most one of each address family.

    The gateway "" is the link itself, for the families in which the interface has addresses. The new route comes
    before the old one goes. Routes with a metric are somebody else's and stay. Raises OSError, Failed.
    """
    inside = namespace.netlink
    wanted: dict[int, tuple[int, str, IPAddress | None]] = {}
    for name, gateway in via:
        link = netlink.find_link(inside, name)
        if link is None:
            raise Failed(f"no interface {name} in the container: it was taken away or renamed from inside")
        if gateway:
            address = ipaddress.ip_address(gateway)
            wanted[address.version] = link.index, name, address
        else:
            wanted |= dict.fromkeys(_families(inside, link.index), (link.index, name, None))
    for version in (4, 6):
        _set_default_route(inside, version, wanted.get(version))


def _families(inside: Netlink, index: int) -> list[int]:
    return [
        version
        for version in (4, 6)
        if any(each.index == index and not each.interface.is_link_local for each in netlink.addresses(inside, version))
    ]


def _set_default_route(inside: Netlink, version: int, wanted: tuple[int, str, IPAddress | None] | None) -> None:
    kept: tuple[int, str] | None = None
    if wanted is not None:
        index, name, gateway = wanted
        try:
            inside.transact(netlink.add_default_route(index, name, gateway, version=version))
            return  # mostly there was none
        except OSError as exc:
            if exc.errno != errno.EEXIST:
                raise
        kept = index, str(gateway) if gateway is not None else ""
        if not any((route.index, route.gateway) == kept for route in _present(inside, version)):
            inside.transact(netlink.put_default_route(index, name, gateway, version=version))
    for route in _present(inside, version):
        if (route.index, route.gateway) != kept:
            inside.transact(netlink.delete_default_route(route))


def _present(inside: Netlink, version: int) -> list[Route]:
    return [route for route in netlink.main_routes(inside, version) if _is_ours(route)]


def _is_ours(route: Route) -> bool:
    return (
        route.destination.prefixlen == 0
        and route.protocol == netlink.RTPROT_BOOT
        and route.metric == (METRIC6 if route.destination.version == 6 else 0)
    )
