"""Sizes, durations and numbers in the forms docker reads and prints; pure functions.

Parsers raise ValueError with the words Go's strconv, time and docker's units packages use, since they end up in
`invalid argument "x" for "--flag" flag: …`.
"""

from __future__ import annotations

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATIONS = {  # nanoseconds
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


def _scaled(size: float, base: float, names: tuple[str, ...], digits: int) -> str:
    step = 0
    while size >= base and step < len(names) - 1:
        size /= base
        step += 1
    return f"{size:.{digits}g}{names[step]}"


def human_size(size: float, digits: int = 4) -> str:
    """Bytes in powers of 1000: `1.984MB`."""
    return _scaled(size, 1000.0, DECIMAL, digits)


def binary_size(size: float) -> str:
    """Bytes in powers of 1024: `23.54GiB`."""
    return _scaled(size, 1024.0, BINARY, 4)


def human_duration(seconds: float) -> str:
    """`Less than a second`, `About a minute`, `3 weeks`: docker's rounding."""
    whole = int(seconds)
    minutes = int(seconds / 60)
    hours = int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"


def parse_float(text: str) -> float:
    try:
        if not text or text != text.strip() or "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        raise ValueError(f'strconv.ParseFloat: parsing "{text}": invalid syntax') from None


def parse_size(text: str) -> int:
    """Bytes of `512`, `64m`, `1.5 GiB` (powers of 1024 always)."""
    at = max(text.rfind(char) for char in "0123456789. ") if text else -1
    if at < 0:
        raise ValueError(f"invalid size: '{text}'")
    number = text[:at] if text[at] == " " else text[: at + 1]
    suffix = text[at + 1 :]
    size = parse_float(number)
    if size < 0:
        raise ValueError(f"invalid size: '{text}'")
    if not suffix:
        return int(size)
    lower = suffix.lower()
    if lower == "b":
        return int(size)
    power = _POWERS.get(lower[0])
    if power is None or lower[1:] not in ("", "b", "ib"):
        raise ValueError(f"invalid suffix: '{suffix}'")
    return int(size * 1024.0**power)


def parse_int(text: str, *, bits: int = 64, function: str = "ParseInt") -> int:
    """A decimal, 0x, 0o, 0b or 0-prefixed octal integer, as Go's ParseInt with base 0."""
    body = text.lstrip("+-") if text[:1] in ("+", "-") and len(text) - len(text.lstrip("+-")) == 1 else text
    try:
        if not body or body[0] in "+-" or body != body.strip():
            raise ValueError
        number = int(body, 8) if len(body) > 1 and body[0] == "0" and body[1].isdigit() else int(body, 0)
    except ValueError:
        raise ValueError(f'strconv.{function}: parsing "{text}": invalid syntax') from None
    if text.startswith("-"):
        number = -number
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise ValueError(f'strconv.{function}: parsing "{text}": value out of range')
    return number


def parse_uint(text: str, *, bits: int = 64) -> int:
    """Like `parse_int`, without sign."""
    if text[:1] in ("+", "-"):
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    return parse_int(text, bits=bits + 1, function="ParseUint")


def parse_bool(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_duration(text: str) -> int:
    """Nanoseconds of Go's `1h15m30.5s`."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f'time: invalid duration "{text}"')
    total = 0.0
    while rest:
        at = 0
        while at < len(rest) and (rest[at].isdigit() or rest[at] == "."):
            at += 1
        number = rest[:at]
        if not any(char.isdigit() for char in number) or number.count(".") > 1:
            raise ValueError(f'time: invalid duration "{text}"')
        rest = rest[at:]
        at = 0
        while at < len(rest) and not (rest[at].isdigit() or rest[at] == "."):
            at += 1
        unit, rest = rest[:at], rest[at:]
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _DURATIONS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _DURATIONS[unit]
    return -int(total) if text.startswith("-") else int(total)


def _trimmed(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


def parse_cpus(text: str) -> int:
    """Nano-CPUs of `1.5` or `3/2`; refuses what cannot be written in billionths."""
    numerator, slash, denominator = text.partition("/")
    try:
        if slash:
            top, bottom = int(numerator), int(denominator)
        else:
            whole, _, fraction = numerator.partition(".")
            if not (whole + fraction).lstrip("+-").isdigit():
                raise ValueError
            top, bottom = int(whole + fraction), 10 ** len(fraction)
        if bottom == 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"failed to parse {text} as a rational number") from None
    nano, remainder = divmod(top * 1_000_000_000, bottom)
    if remainder:
        raise ValueError("value is too precise")
    return nano
