"""`network lab`, `network capture` and `network create --egress` against a fake engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wherry.cli.commands.network_lab import parse_loss, parse_rate, show_duration, show_rate

Wherry = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "bits"), [("1mbit", 1_000_000), ("1.5Mbit", 1_500_000), ("2gbit", 2 * 10**9), ("9", 9), ("8kbit", 8000)]
)
def test_rates_are_read(text: str, bits: int) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["", "mbit", "1mbps", "-1", "0", "1e30", "nan", "inf", "1 mbit"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_rate(text)


@pytest.mark.parametrize(("text", "percent"), [("5%", 5.0), ("0.25", 0.25), ("100%", 100.0)])
def test_losses_are_read(text: str, percent: float) -> None:
    assert parse_loss(text) == percent


@pytest.mark.parametrize("text", ["", "%", "101%", "-1", "nan%", "5%%"])
def test_other_losses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_loss(text)


def test_what_is_shown_is_what_was_typed() -> None:
    assert [show_rate(parse_rate(text)) for text in ("1mbit", "1.5gbit", "900bit")] == ["1mbit", "1.5gbit", "900bit"]
    assert [show_duration(nano) for nano in (0, 999, 1_500_000, 100_000_000, 2_000_000_000)] == [
        "-", "999ns", "1.5ms", "100ms", "2s",
    ]  # fmt: skip


def test_trouble_is_sent_in_nanoseconds_percent_and_bits(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["POST /networks/lab/web"] = reply(204)
    done = wherry(
        "network", "lab", "web", "--network", "n1", "--latency", "100ms", "--jitter", "10ms", "--loss", "5%",
        "--rate", "1mbit",
    )  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    assert fake_engine.requests[0].body == {
        "Network": "n1", "Latency": 100_000_000, "Jitter": 10_000_000, "Loss": 5.0, "Rate": 1_000_000,
        "Partition": False,
    }  # fmt: skip
    assert wherry("network", "lab", "--partition", "web").code == 0
    assert fake_engine.requests[1].body["Partition"] is True


def test_trouble_is_cleared(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    fake_engine.answers["DELETE /networks/lab/web"] = reply(204)
    assert wherry("network", "lab", "--clear", "--network", "n1", "web").code == 0
    assert fake_engine.requests[0].query == {"network": ["n1"]}


def test_trouble_is_shown(fake_engine: Any, reply: Any, wherry: Wherry) -> None:
    links = [
        {"Network": "n1", "Latency": 100_000_000, "Jitter": 0, "Loss": 2.5, "Rate": 1_000_000, "Partition": False},
        {"Network": "n2", "Latency": 0, "Jitter": 0, "Loss": 0, "Rate": 0, "Partition": True},
    ]
    fake_engine.answers["GET /networks/lab/web"] = reply(200, links)
    shown = wherry("network", "lab", "web").out.splitlines()
    assert [line.split() for line in shown] == [
        ["NETWORK", "LATENCY", "JITTER", "LOSS", "RATE", "PARTITION"],
        ["n1", "100ms", "-", "2.5%", "1mbit", "-"],
        ["n2", "-", "-", "-", "-", "yes"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clear", "--loss", "1"], "conflicting options: cannot specify both --clear and --loss\n"),
        (["--latency", "-1s"], "--latency cannot be negative\n"),
        (["--jitter", "1s"], "--jitter is how far --latency varies: it cannot be more than that\n"),
    ],
)
def test_contradictions_of_the_lab(fake_engine: Any, wherry: Wherry, arguments: list[str], message: str) -> None:
    done = wherry("network", "lab", *arguments, "web")
    assert (done.code, done.err) == (1, message)
    assert fake_engine.asked() == []


def test_a_wrong_value_names_its_flag(wherry: Wherry) -> None:
    assert (
        'invalid argument "1mbps" for "--rate" flag: unknown unit' in wherry("network", "lab", "--rate=1mbps", "c").err
    )
    assert 'invalid argument "200%" for "--loss" flag' in wherry("network", "lab", "--loss=200%", "c").err


PACKETS = b"\x4d\x3c\xb2\xa1" + bytes(range(256))


def test_packets_go_to_a_file(fake_engine: Any, reply: Any, wherry: Wherry, tmp_path: Path) -> None:
    fake_engine.answers["GET /networks/capture/web"] = reply(200, PACKETS)
    target = tmp_path / "web.pcap"
    done = wherry(
        "network", "capture", "-o", str(target), "-c", "5", "--duration", "1500ms", "--filter", "tcp and port 80",
        "--network", "n1", "web",
    )  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    assert target.read_bytes() == PACKETS
    assert fake_engine.requests[0].query == {
        "count": ["5"], "filter": ["tcp and port 80"], "network": ["n1"], "seconds": ["1.5"], "snaplen": ["262144"],
    }  # fmt: skip


def test_a_refused_capture_makes_no_file(fake_engine: Any, reply: Any, wherry: Wherry, tmp_path: Path) -> None:
    fake_engine.answers["GET /networks/capture/web"] = reply(400, {"message": "invalid filter"})
    target = tmp_path / "web.pcap"
    done = wherry("network", "capture", "-o", str(target), "--filter", "(", "web")
    assert (done.code, done.err) == (1, "Error response from daemon: invalid filter\n")
    assert not target.exists()
    fake_engine.answers["GET /networks/capture/web"] = reply(200, PACKETS)
    done = wherry("network", "capture", "-o", str(tmp_path / "no" / "x"), "web")
    assert (done.code, done.err) == (1, f"open {tmp_path}/no/x: no such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--egress", "allow=pypi.example,10.0.0.0/8"], "pypi.example,10.0.0.0/8"),
        (["--egress", "allow=a.example", "--egress", "allow=b.example"], "a.example,b.example"),
        (["--egress", "none"], "none"),
    ],
)
def test_egress_is_an_option_of_the_network(
    fake_engine: Any, reply: Any, wherry: Wherry, arguments: list[str], option: str
) -> None:
    fake_engine.answers["POST /networks/create"] = reply(201, {"Id": "n" * 64})
    assert wherry("network", "create", "-o", "a=b", *arguments, "n1").code == 0
    assert fake_engine.requests[0].body["Options"] == {"a": "b", "wherry.egress": option}


@pytest.mark.parametrize("value", ["deny=x", "allow=", "allow=a,,b", "", "none,a.example"])
def test_a_wrong_egress_is_refused(fake_engine: Any, wherry: Wherry, value: str) -> None:
    done = wherry("network", "create", f"--egress={value}", "n1")
    assert (done.code, done.err) == (1, "invalid --egress: use allow=DOMAIN,CIDR,... or none\n")
    assert fake_engine.asked() == []
