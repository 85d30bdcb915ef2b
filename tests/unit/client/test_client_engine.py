"""The client's side of the Engine API's HTTP: bodies, reuse, refusals, take-over."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wherry.client.endpoint import parse_host
from wherry.client.engine import Engine, EngineError, ProtocolError, Unreachable, encode_query, quote

Reader = Callable[[socket.socket], tuple[str, dict[str, str], bytes]]
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def answer(*responses: bytes, request_of: Reader, seen: list[Any]) -> Callable[[socket.socket], None]:
    """A script: one response for each request of the connection."""

    def script(connection: socket.socket) -> None:
        for response in responses:
            seen.append(request_of(connection))
            connection.sendall(response)

    return script


def test_a_body_by_length_by_chunks_and_to_the_end(server: Any, engine: Engine, request_of: Reader) -> None:
    seen: list[Any] = []
    server.scripts = [
        answer(
            JSON_HEAD + b"Content-Length: 5\r\n\r\n[1,2]",
            JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2;x=y\r\n2]\r\n0\r\nTrailer: x\r\n\r\n",
            JSON_HEAD + b"\r\n[3]",
            request_of=request_of,
            seen=seen,
        )
    ]
    assert engine.get_json("/a") == [1, 2]
    assert engine.get_json("/b", {"x": "1"}) == [1, 2]
    assert engine.get_json("/c") == [3]
    assert [line for line, _, _ in seen] == [
        "GET /v1.41/a HTTP/1.1",
        "GET /v1.41/b?x=1 HTTP/1.1",
        "GET /v1.41/c HTTP/1.1",
    ]
    assert server.connections == 1  # kept as long as the bodies had an end


def test_the_older_api_version_is_spoken(server: Any, request_of: Reader) -> None:
    seen: list[Any] = []
    server.scripts = [
        answer(
            b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 0\r\n\r\n",
            JSON_HEAD + b"Content-Length: 2\r\n\r\n{}",
            request_of=request_of,
            seen=seen,
        )
    ]
    engine = Engine(server.endpoint)
    assert engine.get_json("/info") == {}
    assert engine.version == "1.41"
    assert seen[0][0] == "HEAD /_ping HTTP/1.1"
    assert seen[1][0] == "GET /v1.41/info HTTP/1.1"
    engine.close()
    assert engine.newer_than("1.9")
    assert not engine.newer_than("1.42")


def test_a_connection_that_was_closed_while_idle_is_replaced(server: Any, engine: Engine, request_of: Reader) -> None:
    seen: list[Any] = []
    response = JSON_HEAD + b"Content-Length: 2\r\n\r\n{}"
    server.scripts = [answer(response, request_of=request_of, seen=seen) for _ in range(2)]
    assert engine.get_json("/a") == {}
    assert server.closed.acquire(timeout=10)
    assert engine.post_json("/b", None, {"x": 1}) == {}  # a POST, which is never sent twice
    assert server.connections == 2
    assert seen[1][2] == b'{"x":1}'


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
         b'{"message":"who"}', "who"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "{}"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nno\r\n", "no"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
         "request returned 500 Oops and provided no error-message: "
         "check if the engine supports the requested API version"),
    ],
)  # fmt: skip
def test_a_refusal_carries_the_engines_words(
    server: Any, engine: Engine, request_of: Reader, response: bytes, message: str
) -> None:
    server.scripts = [answer(response, request_of=request_of, seen=[])]
    with pytest.raises(EngineError) as failure:
        engine.get_json("/a")
    assert failure.value.message == message
    assert failure.value.status == int(response[9:12])


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        JSON_HEAD + b"Content-Length: 9\r\n\r\n{}",
        JSON_HEAD + b"Content-Length: x\r\n\r\n{}",
        JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}",
        JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
        JSON_HEAD + b"Content-Length: 1\r\n\r\n{",
    ],
)
def test_a_broken_answer_is_a_protocol_error(server: Any, engine: Engine, request_of: Reader, response: bytes) -> None:
    server.scripts = [answer(response, request_of=request_of, seen=[])]
    with pytest.raises(ProtocolError):
        engine.get_json("/a")


def test_nobody_at_the_socket(tmp_path: Any) -> None:
    with pytest.raises(Unreachable) as failure:
        Engine(parse_host(f"unix://{tmp_path}/none")).get_json("/a")
    assert failure.value.reason == "No such file or directory"
    assert failure.value.endpoint == f"unix://{tmp_path}/none"


def test_interim_answers_are_passed_over(server: Any, engine: Engine, request_of: Reader) -> None:
    response = b"HTTP/1.1 100 Continue\r\n\r\n" + JSON_HEAD + b"Content-Length: 2\r\n\r\n{}"
    server.scripts = [answer(response, request_of=request_of, seen=[])]
    assert engine.get_json("/a") == {}


def test_messages_arrive_when_they_are_complete_however_they_are_cut(
    server: Any, engine: Engine, request_of: Reader
) -> None:
    chunks = [b'{"status":', b'"a"}\r\n{"st', b'atus":"b"}{"status":"c"}\n', b'{"status":"\xc3', b'\xa9"}']
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    response = JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body
    server.scripts = [answer(response, request_of=request_of, seen=[])]
    with engine.open("POST", "/images/create") as call:
        assert [message["status"] for message in call.messages()] == ["a", "b", "c", "é"]


def test_a_streamed_body_goes_chunked(server: Any, engine: Engine, request_of: Reader) -> None:
    seen: list[Any] = []
    server.scripts = [answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", request_of=request_of, seen=seen)]
    with engine.open("POST", "/load", data=iter([b"abc", b"", b"de"])) as call:
        call.response.read()
    _, headers, body = seen[0]
    assert headers["transfer-encoding"] == "chunked"
    assert headers["content-type"] == "application/x-tar"
    assert body == b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def test_a_refusal_in_the_middle_of_an_upload_is_heard(server: Any, engine: Engine) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(100)
        connection.shutdown(socket.SHUT_RD)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n"
                           b'Content-Length: 17\r\n\r\n{"message":"who"}')  # fmt: skip

    server.scripts = [script]
    with pytest.raises(EngineError, match="who"):
        engine.open("PUT", "/archive", data=iter([b"x" * 65536] * 1000))


def test_a_hijacked_connection_carries_both_directions_and_half_closes(
    server: Any, engine: Engine, request_of: Reader
) -> None:
    seen: list[Any] = []

    def script(connection: socket.socket) -> None:
        seen.append(request_of(connection))
        connection.sendall(b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
                           b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly")  # fmt: skip
        received = b""
        while data := connection.recv(100):
            received += data
        connection.sendall(b" got " + received)

    server.scripts = [script]
    taken = engine.hijack("/exec/x/start", None, {"Tty": True})
    taken.stream.send(b"typed")
    taken.stream.close_write()
    output = taken.early
    while data := taken.stream.recv():
        output += data
    taken.close()
    assert output == b"early got typed"
    assert seen[0][1]["upgrade"] == "tcp"
    assert seen[0][2] == b'{"Tty":true}'


def test_an_engine_that_does_not_take_over_is_told_from_one_that_refuses(
    server: Any, engine: Engine, request_of: Reader
) -> None:
    server.scripts = [
        answer(JSON_HEAD + b"Content-Length: 2\r\n\r\n{}", request_of=request_of, seen=[]),
        answer(b"HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
               b'{"message":"later"}', request_of=request_of, seen=[]),
    ]  # fmt: skip
    with pytest.raises(ProtocolError, match="unable to upgrade to tcp, received 200"):
        engine.hijack("/containers/x/attach")
    with pytest.raises(EngineError, match="later"):
        engine.hijack("/containers/x/attach")


def test_a_second_call_beside_an_open_one_has_its_own_connection(
    server: Any, engine: Engine, request_of: Reader
) -> None:
    seen: list[Any] = []

    def waiting(connection: socket.socket) -> None:
        seen.append(request_of(connection))
        connection.sendall(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(1) == b""

    server.scripts = [waiting]
    call = engine.open("POST", "/containers/x/wait")
    assert call.response.status == 200  # the head is there before the body
    assert not call.response.buffered()
    call.close()


def test_queries_are_sorted_and_quoted() -> None:
    query = {"b": True, "a": ["1", "2"], "c": False, "d": None, "e": "x/y z", "f": 0}
    assert encode_query(query) == "a=1&a=2&b=1&e=x%2Fy%20z&f=0"
    assert quote("a/b:c@d", safe=b"/:@") == "a/b:c@d"
    assert quote("é\udc80") == "%C3%A9%80"


def test_a_body_refused_halfway_on_a_kept_connection_is_refused_in_words(server: Any, engine: Engine) -> None:
    shut = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(JSON_HEAD + b"Content-Length: 2\r\n\r\n{}")
        connection.recv(65536)
        refusal = b'{"message":"no space left"}'
        connection.sendall(
            b"HTTP/1.1 507 Full\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(refusal)
            + refusal
        )
        connection.shutdown(socket.SHUT_RD)
        shut.set()
        assert connection.recv(1) == b""

    def body() -> Iterator[bytes]:
        yield b"first"
        assert shut.wait(10)
        yield b"second"
        yield b"third"

    server.scripts = [script]
    assert engine.get_json("/info") == {}
    with pytest.raises(EngineError, match="no space left") as caught:
        engine.open("POST", "/images/load", data=body())
    assert caught.value.status == 507
    engine.close()
