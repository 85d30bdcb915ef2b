"""Captures of a container's link, read by tcpdump and tshark where they are, and by hand."""

import asyncio
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from driverkit import container, network, place, reaches
from netkit import World, make_socket

from harness.descriptors import descriptors
from harness.needs import require_programs
from wherry.errors import Failed, InvalidParameter
from wherry.kernel import netlink
from wherry.kernel.netlink import Netlink
from wherry.network import capture
from wherry.network.capture import Capture, CaptureRequest, capturing
from wherry.network.drivers.bridge import BridgeDriver
from wherry.network.drivers.lan import MacvlanDriver
from wherry.network.places import Namespace

pytestmark = pytest.mark.kernel
PLACE = place(1, "172.30.0.2/24")
WEB = network("172.30.0.0/24")


@pytest.fixture
def one(world: World) -> Iterator[Namespace]:
    driver = BridgeDriver(lambda record: "br-web")
    driver.create(WEB)
    with container() as made:
        driver.attach(WEB, PLACE, made)
        yield made


def say(one: Namespace, *words: bytes, port: int = 99) -> None:
    """Datagrams from the host to the container."""
    with make_socket(one.fd, socket.SOCK_DGRAM) as server, make_socket(None, socket.SOCK_DGRAM) as client:
        server.bind(("172.30.0.2", port))
        for word in words:
            client.sendto(word, ("172.30.0.2", port))


async def collect(taken: Capture) -> bytes:
    return b"".join([piece async for piece in taken.pieces()])


def records(stream: bytes) -> list[tuple[bytes, int, int]]:
    """Packets, their lengths on the wire, and seconds."""
    magic, major, minor, _, _, _, link = struct.unpack_from("=IHHiIII", stream)
    assert (magic, major, minor, link) == (0xA1B23C4D, 2, 4, 1)
    found = []
    position = 24
    while position < len(stream):
        seconds, nanoseconds, kept, length = struct.unpack_from("=IIII", stream, position)
        assert nanoseconds < 1_000_000_000
        found.append((stream[position + 16 : position + 16 + kept], length, seconds))
        position += 16 + kept
    assert position == len(stream)
    return found


async def test_packets_come_whole_with_their_times_and_only_the_chosen_ones(one: Namespace) -> None:
    async with capturing(one, PLACE, CaptureRequest(filter="udp port 99", count=2)) as taken:
        say(one, b"no", port=98)
        say(one, b"hello", b"again")
        found = records(await collect(taken))
        assert [data[42:47] for data, *_ in found] == [b"hello", b"again"]
        assert all(seconds > 1_600_000_000 for *_, seconds in found)
        assert taken.dropped == 0


async def test_only_the_beginning_of_long_packets_is_kept_with_their_length(one: Namespace) -> None:
    async with capturing(one, PLACE, CaptureRequest(filter="udp", count=1, snaplen=50)) as taken:
        say(one, bytes(1000))
        ((data, length, _),) = records(await collect(taken))
        assert (len(data), length) == (50, 1042)


async def test_what_nobody_reads_in_time_is_dropped_and_counted(one: Namespace) -> None:
    async with capturing(one, PLACE, CaptureRequest(filter="udp", seconds=0.05)) as taken:
        say(one, *[bytes(1400)] * 6000)
        kept = len(records(await collect(taken)))
        assert 0 < kept < 6000
        assert taken.dropped + kept == 6000
        assert taken.dropped + kept == 6000


async def test_a_quiet_capture_ends_in_time_with_a_file_that_has_a_head(one: Namespace) -> None:
    async with capturing(one, PLACE, CaptureRequest(filter="sctp", seconds=0.02)) as taken:
        assert records(await collect(taken)) == []


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_ends_with_the_container(one: Namespace, loop: object) -> None:
    async def scenario() -> int:
        async with capturing(one, PLACE, CaptureRequest(filter="udp")) as taken:
            say(one, b"hello")
            pieces = taken.pieces()
            assert len(await anext(pieces)) == 24
            found = [await anext(pieces)]
            with Netlink() as nl:
                nl.transact(netlink.delete_link(PLACE.host_name))
            found += [piece async for piece in pieces]
            return len(found)

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        assert runner.run(asyncio.wait_for(scenario(), 5)) == 1


async def test_it_goes_on_when_the_interface_was_down_for_a_while(one: Namespace) -> None:
    async with capturing(one, PLACE, CaptureRequest(filter="udp", count=2)) as taken:
        say(one, b"one")
        pieces = taken.pieces()
        found = await anext(pieces) + await anext(pieces)
        with Netlink() as nl:
            link = netlink.find_link(nl, PLACE.host_name)
            assert link is not None
            down = netlink.link_body(link.index, 0, netlink.IFF_UP)
            nl.transact(netlink.Message(netlink.RTM_NEWLINK, 0, down, "down"))
            more = asyncio.ensure_future(anext(pieces))
            await asyncio.sleep(0.05)
            nl.transact(netlink.set_up(link.index, link.name))
        reaches(None, one.fd, "172.30.0.2")  # the port forwards again
        say(one, b"two")
        found += await more
        assert [data[42:45] for data, *_ in records(found)] == [b"one", b"two"]


async def test_without_an_end_on_the_host_it_is_taken_in_the_namespace(world: World) -> None:
    driver, record = MacvlanDriver(), network("192.0.2.0/24", driver="macvlan", parent="up0")
    driver.create(record)
    with container() as one:
        driver.attach(record, place(1, "192.0.2.17/24"), one)
        async with capturing(one, PLACE, CaptureRequest(filter="tcp dst port 8080", count=1)) as taken:
            assert reaches(one.fd, world.outside, "192.0.2.2")
            assert len(records(await collect(taken))) == 1


async def test_tcpdump_reads_the_file(one: Namespace, tmp_path: Path) -> None:
    require_programs("tcpdump")
    path = tmp_path / "x.pcap"
    async with capturing(one, PLACE, CaptureRequest(filter="udp port 99", count=1)) as taken:
        say(one, b"hello")
        path.write_bytes(await collect(taken))
    tcpdump = await asyncio.create_subprocess_exec(
        "tcpdump", "-n", "-r", path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    told, _ = await tcpdump.communicate()
    assert re.search(rb"IP 172\.30\.0\.1\.\d+ > 172\.30\.0\.2\.99: UDP, length 5", told)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CaptureRequest(filter="frobnicate"), "invalid filter 'frobnicate'"),
        (CaptureRequest(snaplen=0), "invalid snaplen 0"),
        (CaptureRequest(snaplen=1 << 20), "invalid snaplen"),
        (CaptureRequest(count=-1), "cannot be negative"),
        (CaptureRequest(seconds=-1), "cannot be negative"),
        (CaptureRequest(seconds=float("nan")), "cannot be negative"),
    ],
)
async def test_nonsense_is_refused_and_nothing_stays_open(
    one: Namespace, request_: CaptureRequest, message: str
) -> None:
    before = descriptors()
    with pytest.raises(InvalidParameter, match=message):
        capture.open_capture(one, PLACE, request_)
    assert not descriptors() - before


def test_an_interface_that_is_gone_is_named(one: Namespace) -> None:
    with pytest.raises(Failed, match="no interface eth7 in the container"):
        capture.open_capture(one, place(3, interface="eth7"), CaptureRequest())
