r"""Writer of Docker's json-file logs. The shim uses it, so stdlib only; one writer per path; blocking.

    <path>      {"log":"a line\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}
    <path>.1    the file before it, and so on up to <path>.<max_file - 1>

One line of output is one object. A longer line than 16 KiB is cut into several objects of which only the last has the
`\n`; what a stream ends with, without newline, is an object without `\n`. Encoding is done per chunk of output, not
per line: that is what decides the cost.
"""

import codecs
import json
import os
import time
from collections.abc import Mapping

LINE = 16 << 10  # bytes of one object at most, newline included; Docker's limit

_PLAIN = bytes(byte for byte in range(256) if (byte >= 0x20 and byte not in b'"\\<>&') or byte == 0x0A)
# <, > and & as well: Docker's encoder makes output that is safe within HTML
_ESCAPES = {byte: b"\\u%04x" % byte for byte in range(256) if byte not in _PLAIN}
_ESCAPES |= {0x22: b'\\"', 0x5C: b"\\\\", 0x0D: b"\\r"}


def _replace_bytes(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD per undecodable byte, as Docker has it; Python's own handler makes one per sequence."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("wherry.replace-bytes", _replace_bytes)


def escape(data: bytes) -> bytes:
    """The inside of a JSON string for `data`, except that newlines are left as they are."""
    ascii_only = data.isascii()
    special = data.translate(None, _PLAIN)
    if special:
        if 0x5C in special:  # first: the others put backslashes in
            data = data.replace(b"\\", b"\\\\")
        for byte in set(special) - {0x5C}:
            data = data.replace(bytes((byte,)), _ESCAPES[byte])
    if not ascii_only:
        data = data.decode("utf-8", "wherry.replace-bytes").encode()
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC, the fraction without trailing zeros."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0") + "Z" if fraction else text + "Z"


def _split(data: bytes, size: int) -> int:
    """Where to cut `data`, at most after `size` bytes and not inside a UTF-8 sequence."""
    for cut in range(size, size - 4, -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return size  # not UTF-8 anyway


class Encoder:
    """Turns one stream's output into log objects."""

    def __init__(self, stream: str, attrs: Mapping[str, str]) -> None:
        extra = f',"attrs":{json.dumps(dict(attrs), separators=(",", ":"))}' if attrs else ""
        self._tail = f'","stream":"{stream}"{extra},"time":"'.encode()
        self._partial = b""

    def feed(self, chunk: bytes, now: int) -> bytes:
        """The objects that `chunk` completes, as lines of the file; `now` in ns. An unfinished line is kept."""
        data = self._partial + chunk if self._partial else chunk
        end = data.rfind(b"\n") + 1
        tail = self._tail + timestamp(now).encode() + b'"}\n'
        out = []
        if end:
            out.append(self._lines(data[:end], tail))
            data = data[end:]
        while len(data) >= LINE:
            cut = _split(data + b"\n", LINE)
            out.append(b'{"log":"' + escape(data[:cut]) + tail)
            data = data[cut:]
        self._partial = data
        return b"".join(out)

    def flush(self, now: int) -> bytes:
        """The unfinished line, when the stream has ended."""
        data, self._partial = self._partial, b""
        return b'{"log":"' + escape(data) + self._tail + timestamp(now).encode() + b'"}\n' if data else b""

    def _lines(self, data: bytes, tail: bytes) -> bytes:
        """Objects for whole lines."""
        begin, out = 0, []
        while begin < len(data):
            # As many lines as surely need no cutting: one jump of up to 16 KiB at a time.
            end = begin
            while (found := data.rfind(b"\n", end, end + LINE)) >= 0:
                end = found + 1
            if end > begin:
                separator = b"\\n" + tail + b'{"log":"'
                out.append(b'{"log":"' + escape(data[begin : end - 1]).replace(b"\n", separator) + b"\\n" + tail)
                begin = end
            else:
                end = _split(data, begin + LINE)
                out.append(b'{"log":"' + escape(data[begin:end]) + tail)
                begin = end
        return b"".join(out)


class JSONFileLog:
    """The log of one run of a container; appends to what earlier runs left."""

    def __init__(
        self, path: str, *, max_size: int = 0, max_file: int = 1, attrs: Mapping[str, str] | None = None
    ) -> None:
        """`max_size` in bytes, 0 for no rotation; `max_file` counts the current one."""
        self._path = path
        self._max_size = max_size
        self._max_file = max(1, max_file)
        self._encoders = {stream: Encoder(stream, attrs or {}) for stream in ("stdout", "stderr")}
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._append(b"\n")  # an earlier writer was cut off: its line is lost, ours is not

    def write(self, stream: str, chunk: bytes) -> None:
        """Log a chunk of output. After an OSError the file is as before and the chunk is lost."""
        if encoded := self._encoders[stream].feed(chunk, time.time_ns()):
            self._write(encoded)

    def flush(self, stream: str) -> None:
        """The stream has ended: log its unfinished line."""
        if encoded := self._encoders[stream].flush(time.time_ns()):
            self._write(encoded)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, encoded: bytes) -> None:
        if self._max_size <= 0:
            self._append(encoded)
            return
        begin = 0
        while begin < len(encoded):
            if self._size >= self._max_size:
                self._rotate()
            # Up to the line that passes the limit, as if each line had been written by itself.
            end = encoded.find(b"\n", begin + max(0, self._max_size - self._size - 1)) + 1 or len(encoded)
            self._append(encoded[begin:end])
            begin = end

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)  # no half line
            raise
        self._size += len(data)

    def _rotate(self) -> None:
        if self._max_file > 1:
            for number in range(self._max_file - 1, 1, -1):
                if os.path.exists(f"{self._path}.{number - 1}"):
                    os.replace(f"{self._path}.{number - 1}", f"{self._path}.{number}")
            os.replace(self._path, f"{self._path}.1")
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            os.close(self._fd)
            self._fd = fd
        else:
            os.ftruncate(self._fd, 0)
        self._size = 0
