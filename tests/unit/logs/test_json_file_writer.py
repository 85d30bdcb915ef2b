"""The json-file writer: what it writes is what Docker writes."""

import json
import os
import resource
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.logs.json_file import LINE, Encoder, JSONFileLog, escape, timestamp

NOW = 1_767_323_045_123_456_789


def objects(encoded: bytes) -> list[dict]:
    assert encoded == b"" or encoded.endswith(b"\n")
    return [json.loads(line) for line in encoded.splitlines()]


def test_a_line_is_written_to_the_byte_as_docker_writes_it():
    encoder = Encoder("stdout", {})
    assert encoder.feed(b"a line\n", NOW) == (
        b'{"log":"a line\\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}\n'
    )


def test_attributes_come_before_the_time():
    encoder = Encoder("stderr", {"tag": 'a"b'})
    assert encoder.feed(b"x\n", NOW) == (
        b'{"log":"x\\n","stream":"stderr","attrs":{"tag":"a\\"b"},"time":"2026-01-02T03:04:05.123456789Z"}\n'
    )


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (NOW, "2026-01-02T03:04:05.123456789Z"),
        (NOW // 10**9 * 10**9, "2026-01-02T03:04:05Z"),
        (NOW // 10**9 * 10**9 + 120_000_000, "2026-01-02T03:04:05.12Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_times_have_no_trailing_zeros(nanoseconds, text):
    assert timestamp(nanoseconds) == text


@pytest.mark.parametrize(
    ("data", "inside"),
    [
        (b"plain", b"plain"),
        (b'"\\', b'\\"\\\\'),
        (b"<&>", b"\\u003c\\u0026\\u003e"),
        (b"\t\r\x1b\x00\x7f", b"\\u0009\\r\\u001b\\u0000\x7f"),
        ("é\u2028\u2029".encode(), "é\\u2028\\u2029".encode()),
        (b"\xff\xe2\x82", "\ufffd\ufffd\ufffd".encode()),
        (b"\\ufffd", b"\\\\ufffd"),
    ],
)
def test_escapes_are_dockers(data, inside):
    assert escape(data) == inside


@given(st.text())
def test_any_text_comes_back_from_json(text):
    encoded = Encoder("stdout", {}).feed(text.encode("utf-8", "replace") + b"\n", NOW)
    assert "".join(each["log"] for each in objects(encoded)) == text.encode("utf-8", "replace").decode() + "\n"


@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\xff", b"\n"))))
def test_the_objects_do_not_depend_on_where_chunks_are_cut(chunks):
    whole, parts = Encoder("stdout", {}), Encoder("stdout", {})
    data = b"".join(chunks)
    expected = whole.feed(data, NOW) + whole.flush(NOW)
    assert b"".join(parts.feed(chunk, NOW) for chunk in chunks) + parts.flush(NOW) == expected
    decoded = data.decode("utf-8", "wherry.replace-bytes").split("\n")
    lines = [line + "\n" for line in decoded[:-1]] + ([decoded[-1]] if decoded[-1] else [])
    assert [each["log"] for each in objects(expected)] == lines


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (LINE - 1, [LINE]),
        (LINE, [LINE, 1]),
        (LINE + 1, [LINE, 2]),
        (3 * LINE, [LINE, LINE, LINE, 1]),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 20, 1000])
def test_a_long_line_is_cut_as_docker_cuts_it(size, parts, chunk):
    encoder = Encoder("stdout", {})
    data = b"short\n" + b"x" * size + b"\nshort\n"
    encoded = b"".join(encoder.feed(data[at : at + chunk], NOW) for at in range(0, len(data), chunk))
    assert [len(each["log"]) for each in objects(encoded)] == [6, *parts, 6]


def test_a_long_line_is_not_cut_within_a_character():
    encoder = Encoder("stdout", {})
    text = "x" * (LINE - 1) + "é" * 10
    encoded = encoder.feed(text.encode() + b"\n", NOW)
    assert [each["log"] for each in objects(encoded)] == ["x" * (LINE - 1), "é" * 10 + "\n"]
    encoded = encoder.feed(text.encode(), NOW) + encoder.flush(NOW)
    assert [each["log"] for each in objects(encoded)] == ["x" * (LINE - 1), "é" * 10]


def test_an_unfinished_line_is_written_when_its_stream_ends(tmp_path):
    log = JSONFileLog(str(tmp_path / "log"))
    log.write("stdout", b"prompt: ")
    assert (tmp_path / "log").read_bytes() == b""
    log.flush("stdout")
    log.flush("stdout")
    log.close()
    assert [each["log"] for each in objects((tmp_path / "log").read_bytes())] == ["prompt: "]


def test_streams_keep_their_unfinished_lines_apart(tmp_path):
    log = JSONFileLog(str(tmp_path / "log"))
    for stream, data in (("stdout", b"o1"), ("stderr", b"e1"), ("stdout", b"o2\n"), ("stderr", b"e2\n")):
        log.write(stream, data)
    log.close()
    found = objects((tmp_path / "log").read_bytes())
    assert [(each["stream"], each["log"]) for each in found] == [("stdout", "o1o2\n"), ("stderr", "e1e2\n")]


def test_a_second_run_appends_and_a_half_line_of_the_first_is_closed(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"log":"whole\\n"}\n{"log":"hal')
    log = JSONFileLog(str(path))
    log.write("stdout", b"next\n")
    log.close()
    assert path.read_bytes().splitlines()[1] == b'{"log":"hal'
    assert json.loads(path.read_bytes().splitlines()[2])["log"] == "next\n"


def test_rotation_keeps_every_line_in_order_and_files_within_one_line_of_the_limit(tmp_path):
    path = tmp_path / "log"
    log = JSONFileLog(str(path), max_size=1000, max_file=100)
    data = b"".join(b"line %d\n" % number for number in range(300))
    for at in range(0, len(data), 700):
        log.write("stdout", data[at : at + 700])
    log.close()
    names = sorted((name for name in os.listdir(tmp_path)), key=lambda name: -int(name[4:] or 0))
    assert len(names) > 10
    texts = []
    for name in names:
        content = (tmp_path / name).read_bytes()
        line = max(len(each) for each in content.splitlines()) + 1
        assert len(content) < 1000 + line
        if name != "log":
            assert len(content) >= 1000
        texts += [each["log"] for each in objects(content)]
    assert texts == [f"line {number}\n" for number in range(300)]


def test_rotation_forgets_what_is_too_old(tmp_path):
    log = JSONFileLog(str(tmp_path / "log"), max_size=100, max_file=3)
    for number in range(50):
        log.write("stdout", b"%d\n" % number)
    log.close()
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    last = (tmp_path / "log").read_bytes() or (tmp_path / "log.1").read_bytes()
    assert objects(last)[-1]["log"] == "49\n"


def test_with_one_file_rotation_begins_it_anew(tmp_path):
    log = JSONFileLog(str(tmp_path / "log"), max_size=100, max_file=1)
    for number in range(50):
        log.write("stdout", b"%d\n" % number)
    log.close()
    assert os.listdir(tmp_path) == ["log"]
    assert objects((tmp_path / "log").read_bytes())[-1]["log"] == "49\n"


def test_a_failed_write_leaves_whole_lines_only(tmp_path):
    path = tmp_path / "log"
    log = JSONFileLog(str(path))
    log.write("stdout", b"before\n")
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
        with pytest.raises(OSError):
            log.write("stdout", b"much too long for what is left of the disk\n" * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == size
    log.write("stdout", b"after\n")
    log.close()
    assert [each["log"] for each in objects(path.read_bytes())] == ["before\n", "after\n"]
