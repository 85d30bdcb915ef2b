"""Sizes, durations, numbers: docker's forms, in and out."""

import pytest

from wherry.cli import units


@pytest.mark.parametrize(
    ("size", "decimal", "short", "binary"),
    [
        (0, "0B", "0B", "0B"),
        (999, "999B", "999B", "999B"),
        (1000, "1kB", "1kB", "1000B"),
        (1923, "1.923kB", "1.92kB", "1.878KiB"),
        (1_984_000, "1.984MB", "1.98MB", "1.892MiB"),
        (2_340_000_000, "2.34GB", "2.34GB", "2.179GiB"),
        (25_275_000_000, "25.27GB", "25.3GB", "23.54GiB"),
        (999_999, "1000kB", "1e+03kB", "976.6KiB"),
        (1e25, "10YB", "10YB", "8.272YiB"),
    ],
)
def test_sizes(size: float, decimal: str, short: str, binary: str) -> None:
    assert (units.human_size(size), units.human_size(size, 3), units.binary_size(size)) == (decimal, short, binary)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1.9, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (59 * 60 + 59, "59 minutes"),
        (3600, "About an hour"),
        (1.5 * 3600 - 1, "About an hour"),
        (1.5 * 3600, "2 hours"),
        (47.4 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (59 * 86400, "8 weeks"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.human_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1k", 1024), ("4m", 4 << 20), ("1.5g", 3 << 29), ("1 GiB", 1 << 30), ("2TB", 2 << 40),
     ("5b", 5), ("5kB", 5120), (".5k", 512)],
)  # fmt: skip
def test_memory_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid size: ''"),
        ("x", "invalid size: 'x'"),
        ("-1", "invalid size: '-1'"),
        ("4q", "invalid suffix: 'q'"),
        ("4kk", "invalid suffix: 'kk'"),
        ("4kib2", 'strconv.ParseFloat: parsing "4kib2": invalid syntax'),
    ],
)
def test_what_is_no_size(text: str, message: str) -> None:
    with pytest.raises(ValueError) as failure:
        units.parse_size(text)
    assert str(failure.value) == message


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("-5", -5), ("+7", 7), ("0x10", 16), ("010", 8), ("1_000", 1000)]
)
def test_integers(text: str, value: int) -> None:
    assert units.parse_int(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "invalid syntax"), ("x", "invalid syntax"), ("1.5", "invalid syntax"), ("--1", "invalid syntax"),
     (" 1", "invalid syntax"), ("09", "invalid syntax"), (str(1 << 63), "value out of range")],
)  # fmt: skip
def test_what_is_no_integer(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as failure:
        units.parse_int(text)
    assert str(failure.value) == f'strconv.ParseInt: parsing "{text}": {reason}'


def test_unsigned_numbers_have_no_sign_and_a_width() -> None:
    assert units.parse_uint("65535", bits=16) == 65535
    with pytest.raises(ValueError, match=r'strconv.ParseUint: parsing "65536": value out of range'):
        units.parse_uint("65536", bits=16)
    with pytest.raises(ValueError, match=r'strconv.ParseUint: parsing "-1": invalid syntax'):
        units.parse_uint("-1")


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("1s", 10**9),
        ("1h15m30.5s", 4_530_500_000_000),
        ("1.5ms", 1_500_000),
        ("90m", 5400 * 10**9),
        ("-10us", -10_000),
        ("3ns", 3),
        ("60s", 60 * 10**9),
    ],
)
def test_go_durations(text: str, nano: int) -> None:
    assert units.parse_duration(text) == nano


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'time: invalid duration ""'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("s", 'time: invalid duration "s"'),
        ("1..2s", 'time: invalid duration "1..2s"'),
    ],
)
def test_what_is_no_duration(text: str, message: str) -> None:
    with pytest.raises(ValueError) as failure:
        units.parse_duration(text)
    assert str(failure.value) == message


def test_cpus_are_exact() -> None:
    assert units.parse_cpus("1.5") == 1_500_000_000
    assert units.parse_cpus("3/2") == 1_500_000_000
    assert units.parse_cpus("0.000000001") == 1
    with pytest.raises(ValueError, match="too precise"):
        units.parse_cpus("0.0000000001")
    for text in ("x", "1/0", "", "1.2.3"):
        with pytest.raises(ValueError, match=r"failed to parse .* as a rational number"):
            units.parse_cpus(text)
