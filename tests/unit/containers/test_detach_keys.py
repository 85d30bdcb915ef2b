import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.containers.streams.detach import DEFAULT, Watcher, parse


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (DEFAULT, b"\x10\x11"),
        ("ctrl-a", b"\x01"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("a,b", b"ab"),
        ("DEL", b"\x7f"),
        ("ctrl-z,x", b"\x1ax"),
    ],
)
def test_keys_are_read_as_docker_reads_them(text: str, keys: bytes) -> None:
    assert parse(text) == keys


@pytest.mark.parametrize("text", ["foo", "ctrl-!!", "ctrl-A", "ctrl-", "a,,b", "ctrl-p ", "é"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Unknown character"):
        parse(text)


def test_the_sequence_ends_the_session_and_is_not_passed_on() -> None:
    assert Watcher(b"\x10\x11").feed(b"ls\n\x10\x11more") == (b"ls\n", True)


def test_the_sequence_may_come_in_pieces() -> None:
    watcher = Watcher(b"\x10\x11")
    assert watcher.feed(b"a\x10") == (b"a", False)
    assert watcher.feed(b"\x11") == (b"", True)


def test_a_beginning_that_was_not_the_sequence_is_passed_on_whole() -> None:
    watcher = Watcher(b"\x10\x11")
    assert watcher.feed(b"\x10") == (b"", False)
    assert watcher.feed(b"x") == (b"\x10x", False)
    assert watcher.feed(b"\x10") == (b"", False)
    assert watcher.feed(b"\x10") == (b"\x10", False)
    assert watcher.flush() == b"\x10"
    assert watcher.flush() == b""


def test_a_sequence_that_repeats_its_beginning_is_found() -> None:
    watcher = Watcher(b"aab")
    passed = [watcher.feed(bytes([byte])) for byte in b"aaab"]
    assert passed[-1] == (b"", True)
    assert b"".join(data for data, _ in passed) == b"a"


@given(st.lists(st.binary(max_size=6)), st.sampled_from([b"\x10\x11", b"aab", b"\x00", b"aaa"]))
def test_cutting_never_changes_what_is_passed_on(chunks: list[bytes], keys: bytes) -> None:
    whole = b"".join(chunks)
    watcher, passed, complete = Watcher(keys), b"", False
    for chunk in chunks:
        data, complete = watcher.feed(chunk)
        passed += data
        if complete:
            break
    assert complete == (keys in whole)
    assert passed + (b"" if complete else watcher.flush()) == whole.partition(keys)[0]
