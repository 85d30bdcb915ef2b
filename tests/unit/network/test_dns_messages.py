"""Messages of DNS: what is read, what is written, and what hostile ones come to."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.network.dns import message
from wherry.network.dns.message import Code, MalformedError, Type


def question(name: bytes = b"\3Web\0", kind: int = Type.A, *, flags: int = 0x0100, extra: bytes = b"") -> bytes:
    additional = 1 if extra else 0
    return struct.pack(">6H", 0x1234, flags, 1, 0, 0, additional) + name + struct.pack(">HH", kind, 1) + extra


def edns(size: int) -> bytes:
    return b"\0" + struct.pack(">HHIH", Type.OPT, size, 0, 0)


def record(kind: int, data: bytes, *, name: bytes = b"\xc0\x0c", ttl: int = 30) -> bytes:
    return name + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def reply(*records: bytes, name: bytes = b"\3web\0") -> bytes:
    return (
        struct.pack(">6H", 1, 0x8180, 1, len(records), 0, 0) + name + struct.pack(">HH", Type.A, 1) + b"".join(records)
    )


def test_a_question_is_read_in_lower_case_and_given_back_as_it_came() -> None:
    query = message.parse_query(question())
    assert (query.id, query.name, query.kind, query.udp_limit, query.extended) == (0x1234, "web", Type.A, 512, False)
    answer = message.build(query, Code.NO_ERROR, [(Type.A, bytes([10, 0, 0, 1]))])
    assert b"\3Web\0" in answer
    assert message.addresses(answer) == [("10.0.0.1", message.TTL)]
    assert answer[2:4] == b"\x81\x80"  # an answer; recursion was wanted and is available


@pytest.mark.parametrize(("said", "taken"), [(0, 512), (1232, 1232), (65535, 4096)])
def test_a_client_that_takes_more_says_so(said: int, taken: int) -> None:
    query = message.parse_query(question(extra=edns(said)))
    assert (query.udp_limit, query.extended) == (taken, True)
    answer = message.build(query, Code.NO_ERROR)
    assert answer.endswith(edns(message.SIZE_LIMIT))
    assert struct.unpack_from(">H", answer, 10) == (1,)


def test_an_answer_that_is_too_long_is_cut_and_says_so() -> None:
    query = message.parse_query(question())
    records = [(Type.A, bytes([10, 0, 0, n])) for n in range(60)]
    answer = message.build(query, Code.NO_ERROR, records, limit=512)
    assert len(answer) <= 512
    assert struct.unpack_from(">H", answer, 2)[0] & message.TRUNCATED
    assert len(message.answers(answer)[1]) == 30
    assert not struct.unpack_from(">H", message.build(query, Code.NO_ERROR, records), 2)[0] & message.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        question(flags=0x8100),
        struct.pack(">6H", 1, 0, 0, 0, 0, 0),
        struct.pack(">6H", 1, 0, 2, 0, 0, 0) + b"\1a\0\0\1\0\1" * 2,
        question(b"\3we"),
        question(b"\x40a\0"),
        question(b"\xc0\x0c"),
        question(b"\xc0\xff"),
        question(b"\x3f" + b"a" * 63 + b"\x3f" + b"b" * 63 + b"\x3f" + b"c" * 63 + b"\x3f" + b"d" * 63 + b"\0"),
        question()[:-3],
        question(extra=b"\0\0\x29\x10"),
        struct.pack(">6H", 1, 0, 1, 65535, 0, 0) + b"\1a\0\0\1\0\1",
    ],
)
def test_what_is_no_question_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        message.parse_query(data)


def test_what_cannot_be_read_is_told_so_but_answers_are_left_alone() -> None:
    told = message.refuse_unread(question(b"\x40a\0"))
    assert told is not None
    assert told[:2] == b"\x12\x34"
    assert told[3] & 0xF == Code.FORMAT_ERROR
    assert message.refuse_unread(question(flags=0x8100)) is None, "two servers would answer each other for ever"
    assert message.refuse_unread(b"\0\1") is None


def test_a_dot_within_a_label_makes_another_name() -> None:
    query = message.parse_query(question(b"\7a.b\\org\0"))
    assert query.name == "a\\.b\\\\org"


def test_addresses_are_followed_through_aliases_and_strangers_are_passed_over() -> None:
    alias = record(Type.CNAME, b"\3cdn\xc0\x0c")
    there = record(Type.A, bytes([9, 9, 9, 9]), name=b"\3cdn\3web\0", ttl=7)
    stranger = record(Type.A, bytes([6, 6, 6, 6]), name=b"\4evil\0")
    six = record(Type.AAAA, ipaddress.ip_address("2001:db8::1").packed, name=b"\3cdn\3web\0")
    assert message.addresses(reply(there, stranger, alias, six)) == [("9.9.9.9", 7), ("2001:db8::1", 30)]


def test_aliases_that_go_round_in_circles_end() -> None:
    there = record(Type.CNAME, b"\1b\0", name=b"\1a\0")
    back = record(Type.CNAME, b"\1a\0", name=b"\1b\0")
    assert message.addresses(reply(there, back, name=b"\1a\0")) == []


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.20.172.in-addr.arpa", "172.20.0.2"),
        ("256.0.20.172.in-addr.arpa", None),
        ("20.172.in-addr.arpa", None),
        (".".join("2" + "0" * 29 + "df") + ".ip6.arpa", "fd00::2"),
        ("x." * 32 + "ip6.arpa", None),
        ("web", None),
    ],
)
def test_names_of_addresses(name: str, address: str | None) -> None:
    assert message.address_of(name) == address


def test_a_name_that_does_not_fit_the_wire_is_none() -> None:
    assert message.encode_name("web.my net") == b"\3web\6my net\0"
    for name in ("", "a..b", "a" * 64, ".".join(["a" * 60] * 5)):
        assert message.encode_name(name) == b""


@given(st.binary(max_size=600))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for read in (message.parse_query, message.addresses, message.answers):
        try:
            read(data)
        except MalformedError:
            continue
    message.refuse_unread(data)


_LABELS = st.lists(st.binary(min_size=1, max_size=20), max_size=8)


@given(_LABELS, st.integers(0, 65535), st.integers(0, 65535))
def test_what_is_asked_comes_back_in_the_answer(labels: list[bytes], kind: int, number: int) -> None:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    data = struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", kind, 1)
    query = message.parse_query(data)
    assert (query.id, query.kind, query.question) == (number, kind, data[12:])
    asked, records = message.answers(message.build(query, Code.NO_ERROR, [(Type.A, b"\1\2\3\4")]))
    assert (asked, records[0].name, records[0].data) == (query.name, query.name, b"\1\2\3\4")
