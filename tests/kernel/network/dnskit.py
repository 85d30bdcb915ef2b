"""A name server to ask upstream, and a client: raw questions from any namespace."""

import contextlib
import ipaddress
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from netkit import make_socket

from wherry.kernel.netns import in_netns
from wherry.network.dns import message
from wherry.network.dns.message import Code, Query, Type

PATIENCE = 10.0  # s


@dataclass
class NameServer:
    """Answers from `zone`, name to addresses; NXDOMAIN for the rest. What it was asked is in `asked`."""

    zone: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    ttl: int = 5
    silent: bool = False  # by UDP and TCP
    code: int = Code.NO_ERROR
    cut: bool = False  # answers by UDP have no records and say so
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # "udp" or "tcp", name, type
    heard: threading.Event = field(default_factory=threading.Event)  # something

    def answer(self, data: bytes, how: str) -> bytes | None:
        query = message.parse_query(data)
        self.asked.append((how, query.name, query.kind))
        self.heard.set()
        if self.silent:
            return None
        if self.code:
            return message.build(query, self.code)
        if how == "udp" and self.cut:
            return message.truncate(message.build(query, Code.NO_ERROR), query)
        return self._known(query)

    def _known(self, query: Query) -> bytes:
        if query.kind == 16:
            return message.build(query, Code.NO_ERROR, [(16, b"\x04text")], ttl=self.ttl)
        target = self.aliases.get(query.name, query.name)
        if target not in self.zone:
            return message.build(query, Code.NAME_ERROR)
        found = [ipaddress.ip_address(text) for text in self.zone[target]]
        wanted = [one.packed for one in found if (Type.A if one.version == 4 else Type.AAAA) == query.kind]
        if target == query.name:
            return message.build(query, Code.NO_ERROR, [(query.kind, data) for data in wanted], ttl=self.ttl)
        head = bytearray(message.build(query, Code.NO_ERROR, [(Type.CNAME, message.encode_name(target))], ttl=self.ttl))
        if query.extended:
            del head[-11:]
            head[11] = 0
        head[7] += len(wanted)
        for data in wanted:
            head += message.encode_name(target) + message.RECORD.pack(query.kind, 1, self.ttl, len(data)) + data
        return bytes(head)


@contextlib.contextmanager
def serving(server: NameServer, fd: int | None, address: str) -> Iterator[NameServer]:
    """At port 53 of `address` in the namespace of `fd`, None = ours."""
    six = ":" in address
    udp, tcp = make_socket(fd, socket.SOCK_DGRAM, six=six), make_socket(fd, six=six)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.bind((address, 53))
    tcp.bind((address, 53))
    tcp.listen()
    done, wake = os.pipe()
    thread = threading.Thread(target=_serve, args=(server, udp, tcp, done))
    thread.start()
    try:
        yield server
    finally:
        os.close(wake)
        thread.join()
        os.close(done)
        udp.close()
        tcp.close()


def _serve(server: NameServer, udp: socket.socket, tcp: socket.socket, done: int) -> None:
    poller = select.poll()
    for one in (udp.fileno(), tcp.fileno(), done):
        poller.register(one, select.POLLIN)
    while done not in (ready := [fd for fd, _ in poller.poll()]):
        if udp.fileno() in ready:
            data, peer = udp.recvfrom(4096)
            if (reply := server.answer(data, "udp")) is not None:
                udp.sendto(reply, peer)
        if tcp.fileno() in ready:
            connection, _ = tcp.accept()
            with connection:
                connection.settimeout(PATIENCE)
                (size,) = struct.unpack(">H", connection.recv(2, socket.MSG_WAITALL))
                if (reply := server.answer(connection.recv(size, socket.MSG_WAITALL), "tcp")) is not None:
                    connection.sendall(struct.pack(">H", len(reply)) + reply)


def question(name: str, kind: int = Type.A, *, number: int = 7, edns: int = 0) -> bytes:
    body = struct.pack(">6H", number, 0x0100, 1, 0, 0, 1 if edns else 0) + message.encode_name(name)
    body += struct.pack(">HH", kind, 1)
    return body + (b"\0" + message.RECORD.pack(Type.OPT, edns, 0, 0) if edns else b"")


def exchange(fd: int | None, data: bytes, *, at: str = "127.0.0.11", port: int = 53, tcp: bool = False) -> bytes:
    """Blocking: through a thread while the event loop serves."""
    with make_socket(fd, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM, six=":" in at) as client:
        client.connect((at, port))
        if not tcp:
            client.send(data)
            return client.recv(65535)
        client.sendall(struct.pack(">H", len(data)) + data)
        (size,) = struct.unpack(">H", client.recv(2, socket.MSG_WAITALL))
        return client.recv(size, socket.MSG_WAITALL)


@dataclass(frozen=True)
class Told:
    code: int
    addresses: list[str]
    cut: bool


def ask(fd: int | None, name: str, kind: int = Type.A, *, tcp: bool = False, edns: int = 0) -> Told:
    """Blocking. The answer is checked to be one to this question."""
    asked = question(name, kind, edns=edns)
    reply = exchange(fd, asked, tcp=tcp)
    assert reply[:2] == asked[:2]
    return Told(reply[3] & 0xF, [one for one, _ in message.addresses(reply)], bool(reply[2] & 2))


def command(fd: int, resolv_conf: Path, *words: str) -> str:
    """Blocking. What a program says in the namespace, with that file as its resolv.conf."""
    script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
    run = ["unshare", "-m", "sh", "-c", script, str(resolv_conf), *words]
    done = in_netns(
        fd, lambda: subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
    )
    return done.stdout
