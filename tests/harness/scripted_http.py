"""An HTTP server on loopback, in this process, that answers by a script and remembers what it was asked."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class ScriptedServer:
    """Answers by `script[METHOD PATH]`: (status, headers, body), a list of those in turn, or a function of the request;
    `seen` is method, target and headers of every request."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.script: dict[str, Any] = {}
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections = 0
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                scripted.seen.append((self.command, self.path, headers, body))
                answer = scripted.script.get(f"{self.command} {urlsplit(self.path).path}", (404, {}, b""))
                if callable(answer):
                    answer = answer(self.path, headers, body)
                if isinstance(answer, list):
                    answer = answer.pop(0)
                status, given, data = answer
                self.send_response(status)
                for name, value in given:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, address: Any) -> None:
                return  # a client that went away, or does not trust us

            def get_request(self) -> Any:
                scripted.connections += 1
                return super().get_request()

        self.server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def domain(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def asked(self) -> list[str]:
        return [f"{method} {target}" for method, target, _, _ in self.seen]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()
