"""Points in time: RFC 3339 and Go's printed forms, without `datetime` (its import is felt in `ps`)."""

from __future__ import annotations

import time

from wherry.cli.units import parse_duration


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def parse_rfc3339(text: str) -> tuple[int, int]:
    """Seconds since the epoch, and nanoseconds; ValueError when it is not RFC 3339.

    The zone may be missing (UTC), and so may the time of the day or its seconds.
    """
    try:
        date, _, clock = text.replace("t", "T").partition("T")
        year, month, day = (int(part) for part in date.split("-"))
        offset = 0
        if clock.endswith(("Z", "z")):
            clock = clock[:-1]
        elif len(clock) > 6 and clock[-6] in "+-" and clock[-3] == ":":
            sign = -1 if clock[-6] == "-" else 1
            offset = sign * (int(clock[-5:-3]) * 3600 + int(clock[-2:]) * 60)
            clock = clock[:-6]
        whole, _, fraction = clock.partition(".")
        parts = [int(part) for part in whole.split(":")] if whole else []
        hour, minute, second = (*parts, 0, 0, 0)[:3]
        nano = int((fraction + "0" * 9)[:9]) if fraction else 0
        if len(parts) > 3 or not (0 < month < 13 and 0 < day < 32 and hour < 24 and minute < 60 and second < 61):
            raise ValueError
    except ValueError:
        raise ValueError(f"cannot parse {text!r} as a time") from None
    return days_from_civil(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - offset, nano


def _fraction(nano: int) -> str:
    return f".{nano:09d}".rstrip("0") if nano else ""


def go_time(seconds: int, nano: int = 0, *, utc: bool = False) -> str:
    """As Go prints a time: `2026-11-24 05:03:58.5 +0000 UTC`, local unless `utc`."""
    moment = time.gmtime(seconds) if utc else time.localtime(seconds)
    zone = "+0000 UTC" if utc else time.strftime("%z %Z", moment)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', moment)}{_fraction(nano)} {zone}"


def rfc3339(seconds: int, nano: int | None = None) -> str:
    """Local time in RFC 3339; with `nano` all nine digits are written."""
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    fraction = "" if nano is None else f".{nano:09d}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}{fraction}{zone}"


def local_rfc3339(text: str) -> tuple[int, int]:
    """Like parse_rfc3339, but a time without zone is local."""
    seconds, nano = parse_rfc3339(text)
    if text.endswith(("Z", "z")) or (len(text) > 6 and text[-6] in "+-" and "T" in text):
        return seconds, nano
    return int(time.mktime((*time.gmtime(seconds)[:8], -1))), nano


def timestamp(value: str, *, now: float | None = None) -> str:
    """What `--since` and `--until` send: unix seconds, from unix seconds, a time, or a duration before now.

    ValueError for anything else.
    """
    try:
        duration = parse_duration(value)
    except ValueError:
        pass
    else:
        current = time.time() if now is None else now
        return str(int(current - duration / 1e9))
    if "-" in value:
        seconds, nano = local_rfc3339(value)
        return f"{seconds}.{nano:09d}"
    head, _, fraction = value.partition(".")
    if head.isdigit() and (not fraction or fraction.isdigit()):
        return value
    raise ValueError(f'failed to parse value as time or duration: "{value}"')
