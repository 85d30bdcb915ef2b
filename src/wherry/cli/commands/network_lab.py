"""`network lab`: latency, loss, a slow line or none at all on a running container's link; and `network capture`."""

from __future__ import annotations

import os

from wherry.cli.command import CLI, Command
from wherry.cli.console import Failure, flush, out
from wherry.cli.flags import BOOL, DURATION, STRING, UINT, Flag, Flags, Kind
from wherry.cli.table import align
from wherry.cli.units import parse_float
from wherry.client.engine import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wherry.client.engine import Query

RATES = {"bit": 1, "kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
SNAPLEN = 262_144  # bytes of a packet that are kept, as tcpdump does
TROUBLE = ("latency", "jitter", "loss", "rate", "partition")


def parse_loss(text: str) -> float:
    """Percent of `5%` or `5`."""
    loss = parse_float(text.removesuffix("%"))
    if not 0 <= loss <= 100:
        raise ValueError("must be between 0% and 100%")
    return loss


def parse_rate(text: str) -> int:
    """Bits per second of `1mbit` or `64000`."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text[len(number) :].lower()
    if unit and unit not in RATES:
        raise ValueError(f"unknown unit {unit!r}: use bit, kbit, mbit or gbit")
    rate = parse_float(number) * RATES.get(unit, 1)
    if not 1 <= rate < 1 << 63:
        raise ValueError("must be at least 1bit")
    return int(rate)


def show_rate(rate: int) -> str:
    for name in ("gbit", "mbit", "kbit"):
        if rate >= RATES[name]:
            return f"{rate / RATES[name]:g}{name}"
    return f"{rate}bit" if rate else "-"


def show_duration(nano: int) -> str:
    for name, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("µs", 1_000)):
        if nano >= size:
            return f"{nano / size:g}{name}"
    return f"{nano}ns" if nano else "-"


def lab(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    path = f"/networks/lab/{quote(arguments[0])}"
    network = flags.text("network")
    asked = [name for name in TROUBLE if name in flags.changed]
    for name in ("latency", "jitter"):
        if flags.number(name) < 0:
            raise Failure(f"--{name} cannot be negative")
    if flags.number("jitter") > flags.number("latency"):
        raise Failure("--jitter is how far --latency varies: it cannot be more than that")
    if flags.on("clear"):
        if asked:
            raise Failure(f"conflicting options: cannot specify both --clear and --{asked[0]}")
        cli.engine.call("DELETE", path, {"network": network or None})
    elif asked:
        body = {
            "Network": network,
            "Latency": flags.number("latency"),
            "Jitter": flags.number("jitter"),
            "Loss": flags.value("loss"),
            "Rate": flags.number("rate"),
            "Partition": flags.on("partition"),
        }
        cli.engine.call("POST", path, None, body)
    else:
        out(_table(cli.engine.get_json(path, {"network": network or None}) or []))
    return 0


def _table(links: list[dict[str, Any]]) -> str:
    lines = ["NETWORK\tLATENCY\tJITTER\tLOSS\tRATE\tPARTITION"]
    for link in links:
        loss = link.get("Loss") or 0
        fields = (
            link["Network"],
            show_duration(link.get("Latency") or 0),
            show_duration(link.get("Jitter") or 0),
            f"{loss:g}%" if loss else "-",
            show_rate(link.get("Rate") or 0),
            "yes" if link.get("Partition") else "-",
        )
        lines.append("\t".join(fields))
    return align(lines)


def capture(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    """Ctrl-C is the usual end of it, and no failure: what came until then is a whole file."""
    path = flags.text("output")
    if path in ("", "-") and os.isatty(1):
        raise Failure("cowardly refusing to write packets to a terminal. Use the -o flag or redirect")
    seconds = flags.number("duration") / 1_000_000_000
    if seconds < 0:
        raise Failure("--duration cannot be negative")
    query: Query = {
        "network": flags.text("network") or None,
        "count": flags.number("count") or None,
        "seconds": f"{seconds:g}" if seconds else None,
        "snaplen": flags.number("snaplen"),
        "filter": flags.text("filter") or None,
    }
    with cli.engine.open("GET", f"/networks/capture/{quote(arguments[0])}", query) as call:
        flush()
        target = _open_output(path)
        try:
            for chunk in call.chunks():
                view = memoryview(chunk)
                while view:
                    view = view[os.write(target, view) :]
        except KeyboardInterrupt:
            pass
        finally:
            if target != 1:
                os.close(target)
    return 0


def _open_output(path: str) -> int:
    if path in ("", "-"):
        return 1
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise Failure(f"open {path}: {(exc.strerror or str(exc)).lower()}") from None


LOSS = Kind("percent", parse_loss, 0.0)
RATE = Kind("rate", parse_rate, 0)
NETWORK = Flag("network", "", STRING, "The network whose link is meant, if the container has several")

LAB_FLAGS = (
    Flag("clear", "", BOOL, "Take all trouble away"),
    Flag("jitter", "", DURATION, "How far the latency varies"),
    Flag("latency", "", DURATION, "Delay what is sent and received by this long (e.g. 100ms)"),
    Flag("loss", "", LOSS, "Lose this part of the packets (e.g. 5%)"),
    NETWORK,
    Flag("partition", "", BOOL, "Let nothing through at all"),
    Flag("rate", "", RATE, "Let no more through than this (e.g. 1mbit)"),
)
CAPTURE_FLAGS = (
    Flag("count", "c", UINT, "Stop after this many packets"),
    Flag("duration", "", DURATION, "Stop after this long"),
    Flag("filter", "", STRING, 'Capture only what matches (e.g. "tcp and port 80")'),
    NETWORK,
    Flag("output", "o", STRING, "Write to a file, instead of STDOUT"),
    Flag("snaplen", "", UINT, "Keep this many bytes of a packet", default=SNAPLEN),
)

COMMANDS = {
    "lab": Command(
        "[OPTIONS] CONTAINER",
        lab,
        flags=LAB_FLAGS,
        arguments=(1, 1),
        details="Put latency, loss, a slow line or a partition on a container's link; without options, show them",
    ),
    "capture": Command(
        "[OPTIONS] CONTAINER",
        capture,
        flags=CAPTURE_FLAGS,
        arguments=(1, 1),
        details="Capture the packets of a container as a pcap stream, until Ctrl-C",
    ),
}
