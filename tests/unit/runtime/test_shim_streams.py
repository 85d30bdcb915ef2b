"""The stdio of a process within a shim, on real pipes and sockets."""

import os
import socket

import pytest

from wherry.runtime.shim import streams
from wherry.runtime.shim.loop import Loop
from wherry.runtime.shim.streams import BACKLOG, Session, frame

BOTH = frozenset({1, 2})


class MemoryLog:
    def __init__(self):
        self.written = []
        self.failing = False

    def write(self, stream, chunk):
        if self.failing:
            raise OSError(28, "No space left on device")
        self.written.append((stream, chunk))

    def flush(self, stream):
        self.written.append((stream, None))

    def close(self):
        self.written.append(("closed", None))


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


class Process:
    """A session with the other ends of its process's stdio."""

    def __init__(self, loop, **options):
        self.loop = loop
        self.session = Session(loop, tty=options.pop("tty", False), **options)
        stdin, ours = os.pipe()
        out, self.stdout = os.pipe()
        err, self.stderr = os.pipe()
        self.stdin = stdin
        os.set_blocking(stdin, False)
        self.session.use(stdin=ours, outputs={out: 1, err: 2})
        self.session.begin()
        self.open = {self.stdin, self.stdout, self.stderr}

    def attach(self, *, which=BOTH, stdin=False):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.session.attach(theirs, streams=which, stdin=stdin)
        return ours

    def close(self, *fds):
        for fd in fds or tuple(self.open):
            if fd in self.open:
                os.close(fd)
                self.open.discard(fd)

    def turn(self, times=8):
        for _ in range(times):
            self.loop.call_later(0.001, lambda: None)
            self.loop.run_once()


@pytest.fixture
def make(loop):
    made = []

    def build(**options):
        made.append(Process(loop, **options))
        return made[-1]

    yield build
    for each in made:
        each.close()
        for client in tuple(each.session.clients):
            client.close()
        each.session.finish()


def received(client):
    data = b""
    try:
        while chunk := client.recv(1 << 20):
            data += chunk
    except BlockingIOError:
        pass
    return data


def test_output_is_framed_logged_and_given_to_those_who_want_it(make):
    log = MemoryLog()
    process = make(log=log)
    both, err = process.attach(), process.attach(which=frozenset({2}))
    os.write(process.stdout, b"out")
    os.write(process.stderr, b"error")
    process.turn()
    assert sorted(log.written) == [("stderr", b"error"), ("stdout", b"out")]
    out, error = frame(1, b"out"), frame(2, b"error")
    assert received(both) in (out + error, error + out)
    assert received(err) == frame(2, b"error")
    both.close()
    err.close()


def test_a_terminals_output_is_raw(make):
    process = make(tty=True)
    client = process.attach()
    os.write(process.stdout, b"raw")
    process.turn()
    assert received(client) == b"raw"
    client.close()


def test_the_end_of_output_is_told_once_all_of_it_was_read(make):
    log, ended = MemoryLog(), []
    process = make(log=log)
    client = process.attach()
    os.write(process.stdout, b"last")
    process.close(process.stdout, process.stderr)
    process.session.drain(lambda: ended.append(True), 60)
    process.turn()
    assert ended == [True]
    process.session.finish()
    assert received(client) == frame(1, b"last")
    assert client.recv(1) == b""
    assert log.written[0] == ("stdout", b"last")
    assert log.written[-1] == ("closed", None)
    assert {("stdout", None), ("stderr", None)} <= set(log.written)
    client.close()


def test_output_that_others_hold_open_is_given_up_after_a_while_but_read_first(make):
    ended = []
    process = make()
    client = process.attach()
    process.turn()
    os.write(process.stdout, b"left behind")
    process.session.drain(lambda: ended.append(True), 0.01)
    while not ended:
        process.turn(1)
    process.session.finish()
    assert received(client) == frame(1, b"left behind")
    client.close()


def test_input_of_all_clients_reaches_the_process_and_only_that_of_those_who_may(make):
    process = make()
    first, second, watcher = process.attach(stdin=True), process.attach(stdin=True), process.attach()
    first.send(b"a")
    process.turn()
    second.send(b"b")
    watcher.send(b"no")
    process.turn()
    assert os.read(process.stdin, 100) == b"ab"
    for client in (first, second, watcher):
        client.close()


@pytest.mark.parametrize("how", ["shutdown", "close"])
@pytest.mark.parametrize(
    ("close_stdin", "tty", "ended"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_a_clients_end_is_that_of_the_input_only_when_asked_for(make, how, close_stdin, tty, ended):
    process = make(close_stdin=close_stdin, tty=tty)
    client = process.attach(stdin=True)
    client.send(b"x")
    client.shutdown(socket.SHUT_WR) if how == "shutdown" else client.close()
    process.turn()
    assert os.read(process.stdin, 100) == b"x"
    if ended:
        assert os.read(process.stdin, 100) == b""
    else:
        with pytest.raises(BlockingIOError):
            os.read(process.stdin, 100)
    client.close()


def test_output_goes_on_after_a_clients_half_close(make):
    process = make(close_stdin=True)
    client = process.attach(stdin=True)
    client.shutdown(socket.SHUT_WR)
    process.turn()
    os.write(process.stdout, b"later")
    process.turn()
    assert received(client) == frame(1, b"later")
    client.close()


def test_input_waits_for_a_process_that_does_not_read(make):
    process = make()
    client = process.attach(stdin=True)
    sent = 0
    for _ in range(200):
        try:
            sent += client.send(b"x" * 65536)
        except BlockingIOError:
            process.turn(2)
            try:
                sent += client.send(b"x" * 65536)
            except BlockingIOError:
                break
    else:
        pytest.fail("all of it was taken")
    got = 0
    while got < sent:
        process.turn(1)
        try:
            got += len(os.read(process.stdin, 1 << 20))
        except BlockingIOError:
            continue
    assert got == sent
    client.close()


def test_a_process_that_closes_its_input_does_not_disturb(make):
    process = make()
    client = process.attach(stdin=True)
    process.close(process.stdin)
    for _ in range(5):
        client.send(b"nobody reads this")
        process.turn()
    os.write(process.stdout, b"alive")
    process.turn()
    assert received(client) == frame(1, b"alive")
    client.close()


def write_until(process, done):
    """Write to stdout whenever there is room, until `done()`."""
    os.set_blocking(process.stdout, False)
    while not done():
        try:
            os.write(process.stdout, b"y" * 65536)
        except BlockingIOError:
            process.turn(1)


def test_a_client_that_is_behind_makes_the_process_wait_and_loses_nothing(make):
    process = make(grace=None)
    client = process.attach()
    written = 0
    os.set_blocking(process.stdout, False)
    refused = 0
    while refused < 20:  # it is not read any more, so there is no room
        try:
            written += os.write(process.stdout, b"y" * 65536)
        except BlockingIOError:
            refused += 1
            process.turn(1)
    assert process.session.clients[0].queued > BACKLOG
    assert process.session.clients[0].queued < BACKLOG + (1 << 18)
    got = received(client)
    for _ in range(200):
        process.turn(1)
        got += received(client)
    os.write(process.stdout, b"end")
    process.turn()
    got += received(client)
    payload = 0
    while got:
        length = int.from_bytes(got[4:8])
        payload, last, got = payload + length, got[8 : 8 + length], got[8 + length :]
    assert last == b"end"
    assert payload == written + 3
    client.close()


def test_a_client_that_never_reads_is_cut_off_and_the_process_goes_on(make):
    log = MemoryLog()
    process = make(log=log, grace=0.05)
    client = process.attach()
    write_until(process, lambda: not process.session.clients[0].streams)
    before = len(log.written)
    write_until(process, lambda: len(log.written) > before + 40)
    text = received(client)
    for _ in range(20):
        process.turn(1)
        text += received(client)
    assert text.endswith(frame(3, b"attached client does not read: cut off\n"))
    frames = 0
    while text:
        text = text[8 + int.from_bytes(text[4:8]) :]
        frames += 1
    assert frames > 2, "cut between frames"
    client.close()


def test_a_log_that_cannot_be_written_does_not_hold_the_clients(make):
    log, errors = MemoryLog(), []
    log.failing = True
    process = make(log=log, on_log_error=errors.append)
    client = process.attach()
    os.write(process.stdout, b"seen")
    process.turn()
    assert received(client) == frame(1, b"seen")
    assert len(errors) == 1
    client.close()


def test_a_vanished_client_is_forgotten(make):
    process = make()
    process.attach().close()
    for _ in range(3):
        os.write(process.stdout, b"x")
        process.turn()
    assert process.session.clients == []


def test_what_a_client_sent_early_is_input(make):
    process = make()
    ours, theirs = socket.socketpair()
    process.session.attach(theirs, streams=BOTH, stdin=True, early=b"early")
    process.turn()
    assert os.read(process.stdin, 100) == b"early"
    ours.close()


def test_a_child_that_ended_before_it_was_known_is_not_missed(loop):
    seen = []
    loop.expect()
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    loop.reap()
    loop.on_exit(pid, lambda status: seen.append(os.waitstatus_to_exitcode(status)))
    loop.adopted()
    loop.run_once()
    assert seen == [7]


def test_a_child_is_reported_when_it_ends(loop):
    seen = []
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    loop.on_exit(pid, lambda status: seen.append(os.waitstatus_to_exitcode(status)))
    while not seen:
        loop.run_once()
    assert seen == [3]


def test_timers_run_in_order_and_not_when_cancelled(loop):
    seen = []
    loop.call_later(0.02, lambda: seen.append("late"))
    loop.call_later(0.01, lambda: seen.append("early"))
    loop.call_later(0.015, lambda: seen.append("never")).cancel()
    while len(seen) < 2:
        loop.run_once()
    assert seen == ["early", "late"]


def test_a_mistake_with_one_descriptor_does_not_end_the_others(loop, capsys):
    seen = []
    (bad, bad_in), (good, good_in) = os.pipe(), os.pipe()

    def fail(_events):
        raise RuntimeError("mistake")

    loop.watch(bad, streams.IN, fail)
    loop.watch(good, streams.IN, lambda _: seen.append(os.read(good, 10)))
    os.write(bad_in, b"x")
    os.write(good_in, b"y")
    loop.call_later(0.001, lambda: fail(0))
    while not seen:
        loop.run_once()
    loop.call_later(0.002, lambda: seen.append("later"))
    while len(seen) < 2:
        loop.run_once()
    assert "mistake" in capsys.readouterr().err
    for fd in (bad, bad_in, good, good_in):
        os.close(fd)
