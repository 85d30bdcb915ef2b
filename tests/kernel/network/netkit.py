"""A small network to test in: the test's own namespace as the host, and a neighbour on a wire outside.

    outside 192.0.2.2/24 ---- 192.0.2.1/24 up0  host  wherry0 ---- containers

Everything is in namespaces of the test; the machine's own network is never touched.
"""

import contextlib
import ipaddress
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wherry.kernel import netlink
from wherry.kernel.libc import check, libc
from wherry.kernel.netlink import Netlink
from wherry.kernel.netns import CLONE_NEWNET, current, in_netns, new_netns

HOST, NEIGHBOUR = "192.0.2.1", "192.0.2.2"
PATIENCE = 10.0  # s until a packet is given up; only failing tests wait so long


@dataclass(frozen=True, slots=True)
class World:
    outside: int  # fd of the neighbour's namespace

    def route_from_outside(self, subnet: str) -> None:
        """Let the neighbour send packets for `subnet` through the host."""
        network = ipaddress.IPv4Network(subnet)

        def add() -> None:
            with Netlink() as nl:
                route = netlink.add_default_route(_index(nl, "eth0"), "eth0", ipaddress.IPv4Address(HOST))
                body = bytearray(route.body)
                body[1] = network.prefixlen
                destination = netlink.attribute(netlink.RTA_DST, network.network_address.packed)
                nl.transact(netlink.Message(route.type, route.flags, bytes(body) + destination, "add a route"))

        in_netns(self.outside, add)


@contextlib.contextmanager
def private_world() -> Iterator[World]:
    """Move the calling thread, and those it starts, to a namespace of its own; go back afterwards."""
    home = current()
    check(libc.unshare(CLONE_NEWNET), "new network namespace")
    try:
        outside, inside = new_netns(Netlink)
        with inside, Netlink() as nl:
            nl.transact(
                netlink.set_up(1, "lo"),
                netlink.create_veth(
                    "up0", bridge=0, peer="eth0", peer_mac="02:00:00:00:00:02", netns=outside, mtu=1500
                ),
            )
            for side, name, address in ((nl, "up0", HOST), (inside, "eth0", NEIGHBOUR)):
                index = _index(side, name)
                side.transact(
                    netlink.set_up(index, name),
                    netlink.add_address(index, name, ipaddress.IPv4Interface(f"{address}/24")),
                )
        try:
            yield World(outside)
        finally:
            os.close(outside)
    finally:
        check(libc.setns(home, CLONE_NEWNET), "the test's own namespace")
        os.close(home)


def _index(nl: Netlink, name: str) -> int:
    link = netlink.find_link(nl, name)
    assert link is not None, f"no interface {name}"
    return link.index


def make_socket(fd: int | None, kind: socket.SocketKind = socket.SOCK_STREAM, *, six: bool = False) -> socket.socket:
    """A socket in the namespace of `fd`, or in ours."""
    family = socket.AF_INET6 if six else socket.AF_INET
    made = socket.socket(family, kind) if fd is None else in_netns(fd, lambda: socket.socket(family, kind))
    made.settimeout(PATIENCE)
    return made


@contextlib.contextmanager
def greeter(fd: int | None, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    """A server in `fd` that tells each caller the address it sees, until the end of the block.

    TCP: reads to the end of the caller's stream first, and answers with the length read too.
    """
    server = make_socket(fd, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))
    if kind is socket.SOCK_STREAM:
        server.listen()
    done, wake = os.pipe()
    thread = threading.Thread(target=_serve, args=(server, done, kind))
    thread.start()
    try:
        yield
    finally:
        os.close(wake)
        thread.join()
        os.close(done)
        server.close()


def _serve(server: socket.socket, done: int, kind: socket.SocketKind) -> None:
    poller = select.poll()
    for one in (server.fileno(), done):
        poller.register(one, select.POLLIN)
    while done not in (fd for fd, _ in poller.poll()):
        if kind is socket.SOCK_DGRAM:
            _, peer = server.recvfrom(1 << 16)
            server.sendto(peer[0].encode(), peer)
            continue
        connection, peer = server.accept()
        with connection:
            connection.settimeout(PATIENCE)
            length = 0
            while data := connection.recv(1 << 16):
                length += len(data)
            connection.sendall(f"{peer[0]} {length}".encode())


def ask_tcp(address: str, port: int, *, fd: int | None = None, data: bytes = b"hello") -> str:
    """Call, send `data`, end our half, read to the end: whom the server saw. Raises OSError."""
    with make_socket(fd, six=":" in address) as client:
        client.connect((address, port))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    peer, _, length = answer.decode().partition(" ")
    assert int(length) == len(data)
    return peer


def ask_udp(address: str, port: int, *, fd: int | None = None) -> str:
    with make_socket(fd, socket.SOCK_DGRAM) as client:
        client.sendto(b"hello", (address, port))
        return client.recv(1 << 16).decode()


def eventually(what: Callable[[], bool]) -> bool:
    """True as soon as `what` is: for what the kernel does in its own time."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def interface_names() -> set[str]:
    return {name for _, name in socket.if_nameindex()}
