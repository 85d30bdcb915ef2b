"""What every driver does with links and interfaces."""

from wherry.errors import Failed
from wherry.kernel import netlink
from wherry.kernel.netns import in_netns
from wherry.network.drivers import options, sysctls
from wherry.network.places import Namespace, Place
from wherry.network.records import NetworkRecord

ALIAS = "wherry network "


def alias_of(network: NetworkRecord) -> str:
    """What a link of the host that we made for a network has as its alias: it is ours to delete."""
    return ALIAS + network.id


def check_place(place: Place) -> None:
    """Raises InvalidParameter."""
    options.check_interface_name(place.interface, "interface name")
    sysctls.check_endpoint(place.sysctls)


def configure(place: Place, namespace: Namespace) -> None:
    """An interface that is in the namespace gets its settings and addresses, and is up."""
    inside = namespace.netlink
    link = netlink.find_link(inside, place.interface)
    if link is None:
        raise Failed(f"interface {place.interface} vanished while it was set up")
    if place.sysctls or any(address.version == 6 for address in place.addresses):
        in_netns(namespace.fd, lambda: _set_sysctls(place))
    inside.transact(
        netlink.set_up(link.index, place.interface),
        *(netlink.add_address(link.index, place.interface, address) for address in place.addresses),
    )


def _set_sysctls(place: Place) -> None:
    if any(address.version == 6 for address in place.addresses):
        sysctls.use_six(place.interface)
    sysctls.set_endpoint(place.interface, place.sysctls)
