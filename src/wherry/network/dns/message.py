"""Messages of the domain name system (RFC 1035, RFC 6891): queries read, answers written. Pure.

What comes in is hostile: every length is checked, pointers only lead backwards, records are counted. Names are text in
lower case without the last dot; a dot or backslash within a label is escaped, so that such a name never equals another.
"""

import ipaddress
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Type(IntEnum):
    A = 1
    CNAME = 5
    PTR = 12
    MX = 15
    AAAA = 28
    OPT = 41


class Code(IntEnum):
    """RCODE."""

    NO_ERROR = 0
    FORMAT_ERROR = 1
    SERVER_FAILURE = 2
    NAME_ERROR = 3
    NOT_IMPLEMENTED = 4
    REFUSED = 5


INTERNET = 1  # class IN
ANSWER, TRUNCATED, RECURSION_DESIRED, RECURSION_AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
OPCODE, RCODE = 0x7800, 0x000F
HEADER = struct.Struct(">6H")  # id, flags, number of questions, answers, authorities, additional records
RECORD = struct.Struct(">HHIH")  # after its name: type, class, TTL, length
TTL = 600  # s, of our own answers; Docker's
NAME_LIMIT = 255  # bytes of a name on the wire
RECORD_LIMIT = 1000  # read of one message
UDP_LIMIT = 512  # bytes of an answer to who does not say that it takes more
SIZE_LIMIT = 4096  # bytes of an answer by UDP, whatever the client says
MESSAGE_LIMIT = 65535  # bytes
OWNER = b"\xc0\x0c"  # pointer to the name of the question

_ESCAPES = str.maketrans({".": "\\.", "\\": "\\\\"})


class MalformedError(Exception):
    """Not a message that can be read."""


@dataclass(frozen=True, slots=True)
class Query:
    id: int
    flags: int
    name: str
    kind: int
    category: int  # class
    question: bytes  # as it came, for the answer
    udp_limit: int  # bytes the client takes by UDP
    extended: bool  # it speaks EDNS


@dataclass(frozen=True, slots=True)
class Record:
    name: str
    kind: int
    ttl: int  # s
    data: bytes
    target: str = ""  # of a CNAME


def _label(data: bytes) -> str:
    text = data.decode("latin-1").lower()
    return text.translate(_ESCAPES) if "." in text or "\\" in text else text


def read_name(data: bytes, position: int) -> tuple[str, int]:
    """A name, and where it ends. Pointers (RFC 1035, 4.1.4) lead to earlier names only, so following them ends."""
    labels: list[str] = []
    end, before, length = -1, position, 0
    while True:
        if position >= len(data):
            raise MalformedError("a name is cut short")
        size = data[position]
        if size >= 0xC0:
            if position + 1 >= len(data):
                raise MalformedError("a pointer is cut short")
            target = (size & 0x3F) << 8 | data[position + 1]
            if target >= before:
                raise MalformedError("a pointer leads forward")
            end = position + 2 if end < 0 else end
            position = before = target
            continue
        if size > 63:
            raise MalformedError("a label of unknown kind")
        position += 1
        if not size:
            return ".".join(labels), end if end >= 0 else position
        length += size + 1
        if length >= NAME_LIMIT or position + size > len(data):
            raise MalformedError("a name is too long")
        labels.append(_label(data[position : position + size]))
        position += size


def parse_query(data: bytes) -> Query:
    """Raises MalformedError. Whether the operation and the class are known is not looked at."""
    if len(data) < HEADER.size:
        raise MalformedError("shorter than a header")
    number, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & ANSWER or questions != 1:
        raise MalformedError("not one question")
    name, end = read_name(data, HEADER.size)
    if end + 4 > len(data):
        raise MalformedError("the question is cut short")
    kind, category = struct.unpack_from(">HH", data, end)
    end += 4
    limit, extended = UDP_LIMIT, False
    if answers or authorities or additional:
        for record, size in _records(data, end, answers + authorities + additional):
            if record.kind == Type.OPT:
                limit, extended = min(max(size, UDP_LIMIT), SIZE_LIMIT), True
    return Query(number, flags, name, kind, category, data[HEADER.size : end], limit, extended)


def _records(data: bytes, position: int, count: int) -> Iterator[tuple[Record, int]]:
    """Each record, with its class."""
    if count > RECORD_LIMIT:
        raise MalformedError("too many records")
    for _ in range(count):
        name, position = read_name(data, position)
        if position + RECORD.size > len(data):
            raise MalformedError("a record is cut short")
        kind, category, ttl, length = RECORD.unpack_from(data, position)
        position += RECORD.size
        if position + length > len(data):
            raise MalformedError("a record is cut short")
        target = read_name(data, position)[0] if kind == Type.CNAME else ""
        yield Record(name, kind, ttl, data[position : position + length], target), category
        position += length


def answers(data: bytes) -> tuple[str, list[Record]]:
    """Name in the question, and the answers, of an answer. Raises MalformedError."""
    if len(data) < HEADER.size:
        raise MalformedError("shorter than a header")
    _, _, questions, count, _, _ = HEADER.unpack_from(data)
    if questions != 1:
        raise MalformedError("not one question")
    name, end = read_name(data, HEADER.size)
    return name, [record for record, category in _records(data, end + 4, count) if category == INTERNET]


def addresses(data: bytes) -> list[tuple[str, int]]:
    """Address and TTL of each A and AAAA that the question leads to, through aliases. Raises MalformedError."""
    name, records = answers(data)
    names, grown = {name}, True
    while grown:
        found = {record.target for record in records if record.kind == Type.CNAME and record.name in names}
        grown = not found <= names
        names |= found
    resolved = []
    for record in records:
        if record.name in names and (record.kind, len(record.data)) in ((Type.A, 4), (Type.AAAA, 16)):
            resolved.append((str(ipaddress.ip_address(record.data)), record.ttl))
    return resolved


def build(
    query: Query,
    code: int,
    records: Sequence[tuple[int, bytes]] = (),
    *,
    limit: int = MESSAGE_LIMIT,
    ttl: int = TTL,
) -> bytes:
    """An answer with records of the question's name: type and data. Cut, and marked so, when it passes `limit`."""
    flags = ANSWER | RECURSION_AVAILABLE | query.flags & (OPCODE | RECURSION_DESIRED) | code
    option = b"\0" + RECORD.pack(Type.OPT, SIZE_LIMIT, 0, 0) if query.extended else b""
    room = limit - HEADER.size - len(query.question) - len(option)
    encoded = []
    for kind, data in records:
        record = OWNER + RECORD.pack(kind, INTERNET, ttl, len(data)) + data
        room -= len(record)
        if room < 0:
            flags |= TRUNCATED
            break
        encoded.append(record)
    header = HEADER.pack(query.id, flags, 1, len(encoded), 0, int(query.extended))
    return b"".join((header, query.question, *encoded, option))


def refuse_unread(data: bytes) -> bytes | None:
    """FORMERR to what could not be read; None for what is not even a question: an answer to it might go on forever."""
    if len(data) < HEADER.size:
        return None
    number, flags = struct.unpack_from(">HH", data)
    if flags & ANSWER:
        return None
    flags = ANSWER | flags & (OPCODE | RECURSION_DESIRED) | Code.FORMAT_ERROR
    return HEADER.pack(number, flags, 0, 0, 0, 0)


def truncate(data: bytes, query: Query) -> bytes:
    """An answer of another server with its records taken away: the client is to ask by TCP."""
    (flags,) = struct.unpack_from(">H", data, 2)
    return HEADER.pack(query.id, flags | TRUNCATED, 1, 0, 0, 0) + query.question


def encode_name(name: str) -> bytes:
    """As on the wire; nothing for what does not fit there (a container's name may be longer than a label)."""
    labels = [label.encode(errors="replace") for label in name.split(".")]
    encoded = b"".join(bytes([len(label)]) + label for label in labels if len(label) < 64) + b"\0"
    fits = all(0 < len(label) < 64 for label in labels) and len(encoded) <= NAME_LIMIT
    return encoded if fits else b""


def address_of(name: str) -> str | None:
    """The address that a name beneath in-addr.arpa or ip6.arpa stands for."""
    labels = name.split(".")
    if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
        text = ".".join(reversed(labels[:4]))
    elif labels[-2:] == ["ip6", "arpa"] and len(labels) == 34 and all(len(label) == 1 for label in labels[:32]):
        digits = "".join(reversed(labels[:32]))
        text = ":".join(digits[start : start + 4] for start in range(0, 32, 4))
    else:
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
