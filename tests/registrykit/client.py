"""A registry client of bare HTTP: it says exactly what a test wants said, and hides nothing of the answer."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from .documents import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Made, digest

TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        return [error["code"] for error in self.json()["errors"]]


class Client:
    """One connection, kept alive. Paths are as sent: `/v2/…`."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        try:
            return self._request(method, path, body, headers or {})
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()  # the server ended an idle connection
            return self._request(method, path, body, headers or {})

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        self._connection.request(method, path, body, dict(headers))
        answer = self._connection.getresponse()
        data = answer.read()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=_named(headers))

    def manifest(self, repository: str, reference: str, method: str = "GET") -> Answer:
        """Asked for as a client that takes every type."""
        headers = {"Accept": ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))}
        return self.request(method, f"/v2/{repository}/manifests/{reference}", headers=headers)

    def head(self, path: str) -> Answer:
        return self.request("HEAD", path)

    def delete(self, path: str) -> Answer:
        return self.request("DELETE", path)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.request("POST", path, body, _named({"Content_Type": "application/octet-stream", **headers}))

    def patch(self, path: str, body: bytes, **headers: str) -> Answer:
        return self.request("PATCH", path, body, _named({"Content_Type": "application/octet-stream", **headers}))

    def put(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.request("PUT", path, body, _named({"Content_Type": "application/octet-stream", **headers}))

    # -- in several steps ----------------------------------------------------------------------------------------------

    def begin(self, repository: str) -> str:
        """Path of a new upload."""
        answer = self.post(f"/v2/{repository}/blobs/uploads/")
        assert answer.status == 202, answer
        return location(answer)

    def push_blob(self, repository: str, data: bytes) -> str:
        """Its digest. Pushed by POST, then PUT, which every registry must know."""
        answer = self.put(with_digest(self.begin(repository), digest(data)), data)
        assert answer.status == 201, answer
        return digest(data)

    def put_manifest(self, repository: str, reference: str, made: Made) -> Answer:
        return self.put(f"/v2/{repository}/manifests/{reference}", made.data, Content_Type=made.media_type)

    def push(self, repository: str, made: Made, reference: str = "") -> str:
        """A manifest with all its blobs and, when it is an index, children; its digest."""
        for child in made.children:
            self.push(repository, child)
        for blob in made.blobs:
            self.push_blob(repository, blob)
        answer = self.put_manifest(repository, reference or made.digest, made)
        assert answer.status == 201, answer
        return made.digest


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def location(answer: Answer) -> str:
    """Path and query of the Location header, which may be absolute or relative."""
    parts = urlsplit(answer.headers["location"])
    return parts.path + (f"?{parts.query}" if parts.query else "")


def with_digest(path: str, digest: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}digest={digest}"
