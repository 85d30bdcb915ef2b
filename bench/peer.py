"""One end of a measure of bench/network.py; run by python3 within the network namespace it is about.

peer.py serve PORT            what comes after a first byte "s" is swallowed, after "e" it is sent back
peer.py send HOST PORT SEC    Gbit/s that the server swallows
peer.py ping HOST PORT N      µs of the median round trip of one byte
peer.py open HOST PORT N      µs of the median connection: opened, one byte there and back, closed
peer.py resolve NAME SEC      answers per second of the resolver at 127.0.0.11
"""

import contextlib
import os
import socket
import statistics
import struct
import sys
import threading
import time

CHUNK = 1 << 18


def serve(port: int) -> None:
    listening = socket.create_server(("0.0.0.0", port), backlog=512)
    print("ready", flush=True)
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(CHUNK)
    with connection, contextlib.suppress(OSError):
        kind = connection.recv(1)
        while taken := connection.recv_into(buffer):
            if kind == b"e":
                connection.sendall(memoryview(buffer)[:taken])
        if kind == b"s":
            connection.sendall(b"!")  # all of it is here


def connect(host: str, port: int, kind: bytes) -> socket.socket:
    connection = socket.create_connection((host, port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(kind)
    return connection


def send(host: str, port: int, seconds: float) -> float:
    chunk = bytes(CHUNK)
    with connect(host, port, b"s") as connection:
        start, sent = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            connection.sendall(chunk)
            sent += CHUNK
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return sent * 8 / (time.perf_counter() - start) / 1e9


def exchange(connection: socket.socket) -> None:
    connection.sendall(b"x")
    connection.recv(1)


def ping(host: str, port: int, times: int) -> float:
    with connect(host, port, b"e") as connection:
        return median(times, lambda: exchange(connection))


def open_often(host: str, port: int, times: int) -> float:
    def once() -> None:
        with connect(host, port, b"e") as connection:
            exchange(connection)

    return median(times, once)


def median(times: int, action) -> float:  # type: ignore[no-untyped-def]
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


def resolve(name: str, seconds: float) -> float:
    question = (
        b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack(">HH", 1, 1)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.connect(("127.0.0.11", 53))
        start, answers = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            asking.send(struct.pack(">HHHHHH", answers & 0xFFFF, 0x0100, 1, 0, 0, 0) + question)
            answered = asking.recv(512)
            assert answered[3] & 15 == 0, f"{name}: code {answered[3] & 15}"
            assert answered[6:8] != b"\0\0", f"{name}: no address"
            answers += 1
        return answers / (time.perf_counter() - start)


def main() -> None:
    verb, *words = sys.argv[1:]
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if verb == "serve" else min(os.sched_getaffinity(0))})
    if verb == "serve":
        serve(int(words[0]))
    elif verb == "send":
        print(send(words[0], int(words[1]), float(words[2])))
    elif verb == "ping":
        print(ping(words[0], int(words[1]), int(words[2])))
    elif verb == "open":
        print(open_often(words[0], int(words[1]), int(words[2])))
    else:
        print(resolve(words[0], float(words[1])))


main()
