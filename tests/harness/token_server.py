"""A token server for Debian's docker-registry. Run by path: `token_server.py PORT FOLDER`; prints "ready".

FOLDER gets key.pem and cert.pem (`make_keys`), which the registry is told of by its `rootcertbundle`, and a line for
every request in `requests`. alice (password wonderland) may pull and push everything; who gives no name may pull what
is below library/. Whoever asks for a token offline gets a refresh token, too.
"""

import base64
import http.server
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "alice", "wonderland"
REFRESH = "refresh-of-alice"
SERVICE, ISSUER = "test-registry", "test-issuer"


def make_keys(folder: Path) -> None:
    """A key and a certificate that signs itself."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=token"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )


def config(port: int, folder: Path) -> str:
    """The `auth` of a docker-registry that trusts the server on `port`."""
    return (
        f"auth: {{token: {{realm: 'http://127.0.0.1:{port}/token', service: {SERVICE}, issuer: {ISSUER}, "
        f"rootcertbundle: {folder}/cert.pem}}}}\n"
    )


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        pem = (folder / "cert.pem").read_text()
        self.certificate = "".join(line for line in pem.splitlines() if not line.startswith("-"))

    def token(self, user: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            wanted = actions.split(",")
            allowed = wanted if user else [each for each in wanted if each == "pull" and name.startswith("library/")]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]}
        claims = {"iss": ISSUER, "sub": user, "aud": SERVICE, "jti": str(time.monotonic_ns()), "access": access}
        claims |= {"nbf": now - 60, "iat": now, "exp": now + 300}
        text = ".".join(_encode(json.dumps(part).encode()) for part in (head, claims))
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self.folder / "key.pem")],
            input=text.encode(),
            check=True,
            capture_output=True,
        )
        return f"{text}.{_encode(signed.stdout)}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        basic = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(basic).decode().partition(":") if basic else ("", "", "")
        offline = query.get("offline_token") == ["true"]
        self.answer(user, good=not basic or (user, password) == (USER, PASSWORD), offline=offline, asked=query)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        asked = {**form, "scope": form.get("scope", [""])[0].split()}
        if form["grant_type"] == ["refresh_token"]:
            self.answer(USER, good=form["refresh_token"] == [REFRESH], offline=False, asked=asked)
        else:
            good = (form["username"], form["password"]) == ([USER], [PASSWORD])
            self.answer(USER, good=good, offline=form.get("access_type") == ["offline"], asked=asked)

    def answer(self, user: str, *, good: bool, offline: bool, asked: dict[str, list[str]]) -> None:
        grant = asked.get("grant_type", [""])[0]
        with (self.server.folder / "requests").open("a") as log:
            log.write(f"{self.command} {grant} {' '.join(asked.get('scope', []))}\n")
        document: dict[str, object] = {"details": "incorrect username or password"}
        if good:
            document = {"token": self.server.token(user, asked.get("scope", [])), "expires_in": 300}
            if offline and user:
                document["refresh_token"] = REFRESH
        body = json.dumps(document).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    server = Server(int(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    server.serve_forever()
