"""A registry as `wherry manifest` sees it: manifests read and written, small blobs read, blobs mounted.

    with Registry("registry.example:5000", credentials) as registry:
        fetched = registry.get_manifest("team/app", "1.0")
        registry.put_manifest("team/app", "2.0", fetched.media_type, fetched.raw)
        registry.mount("team/app", digest, origin="team/base")

HTTPS with the certificates of /etc/docker/certs.d/HOST; plain HTTP as well for loopback addresses and where `insecure`
allows it, which also leaves the server unverified. Basic credentials and bearer tokens as the registry asks for them.
Everything is held in memory and bounded; layers never pass through here. Every failure is a RegistryError.
"""

from __future__ import annotations

import hashlib

from wherry.client import jsontext
from wherry.client.endpoint import Endpoint
from wherry.client.engine import quote
from wherry.client.http import ConnectError, HTTPError, Stream, open_stream, read_response, send_request
from wherry.client.proxy import find_proxy
from wherry.client.registry_auth import Asked, Authorizer, Credentials, RegistryError, Unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ssl import SSLContext
    from typing import Self

HUB, HUB_HOST = "docker.io", "registry-1.docker.io"
CERTIFICATES = "/etc/docker/certs.d"
SILENCE = 60.0  # s a registry may take for its next byte
MAX_DOCUMENT = 8 << 20  # bytes of a manifest, a config or an error
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
MANIFESTS = (DOCKER_MANIFEST, OCI_MANIFEST)
LISTS = (DOCKER_LIST, OCI_INDEX)


class ManifestUnknown(RegistryError):
    """The repository has no such manifest, or there is no such repository."""


class Fetched:
    """A manifest as it is stored: the digest is that of `raw`."""

    __slots__ = ("digest", "media_type", "raw")

    def __init__(self, raw: bytes, media_type: str, digest: str) -> None:
        self.raw = raw
        self.media_type = media_type
        self.digest = digest


class Answer:
    """A response with its whole body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Server:
    """Scheme, host and port that requests go to."""

    __slots__ = ("host", "port", "scheme")

    def __init__(self, scheme: str, host: str, port: int) -> None:
        self.scheme = scheme
        self.host = host
        self.port = port

    @property
    def shown_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def authority(self) -> str:
        host = self.shown_host
        return host if self.port == _default_port(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def same_as(self, other: Server) -> bool:
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def parse_url(url: str) -> tuple[Server, str]:
    """The server of an absolute http or https URL, and the rest; RegistryError for anything else."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("http", "https"):
        raise RegistryError(f"not an http address: {url}")
    authority, slash, path = rest.partition("/")
    return parse_server(scheme, authority), slash + path or "/"


def parse_server(scheme: str, authority: str) -> Server:
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, ""
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise RegistryError(f"{authority} is no address: its port is no number below 65536")
    return Server(scheme, host.removeprefix("[").removesuffix("]"), int(port) if port else _default_port(scheme))


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def digest_of(raw: bytes) -> str:
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def refusal(answer: Answer) -> str:
    """All that the registry said, in docker's form: `denied: you may not`."""
    words: list[str] = []
    try:
        for error in jsontext.loads(answer.body)["errors"]:
            code, message = str(error.get("code") or ""), str(error.get("message") or "")
            words.append(": ".join(part for part in (code.lower().replace("_", " "), message) if part))
    except (jsontext.JSONError, KeyError, TypeError, AttributeError):
        words = [answer.body[:200].decode("utf-8", "replace").strip()]
    if answer.status == 429 and (seconds := answer.headers.get("retry-after")):
        words.append(f"try again in {seconds} s")
    return "; ".join(word for word in words if word) or f"the registry answered {answer.status}"


class Registry:
    """One registry. Not for several threads."""

    def __init__(
        self,
        domain: str,
        credentials: Credentials | None,
        *,
        insecure: bool = False,
        certificates: str = CERTIFICATES,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ` may name proxies."""
        self.domain = domain
        self.environ = environ or {}
        self.folder = f"{certificates}/{domain}"
        self.insecure = insecure
        self._server: Server | None = None
        self._context: SSLContext | None = None
        self._kept: dict[str, Stream] = {}  # idle connections by server
        self._authorizer = Authorizer(credentials, self._ask_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for stream in self._kept.values():
            stream.close()
        self._kept.clear()

    # -- what it has ---------------------------------------------------------------------------------------------------

    def get_manifest(self, repository: str, reference: str) -> Fetched:
        """By tag or digest; ManifestUnknown when it is not there. What comes by digest has that digest."""
        answer = self._call(
            "GET",
            f"/v2/{repository}/manifests/{quote(reference, safe=b':')}",
            {f"repository:{repository}:pull"},
            headers={"Accept": ", ".join((*MANIFESTS, *LISTS))},
        )
        if answer.status == 404:
            raise ManifestUnknown(refusal(answer))
        self._expect(answer, 200)
        digest = digest_of(answer.body)
        if reference.startswith("sha256:") and digest != reference:
            raise RegistryError(f"{self.domain}/{repository}: asked for {reference}, the registry sent {digest}")
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        return Fetched(answer.body, media_type, digest)

    def get_blob(self, repository: str, digest: str) -> bytes:
        """A small blob, checked against its digest."""
        answer = self._call(
            "GET", f"/v2/{repository}/blobs/{quote(digest, safe=b':')}", {f"repository:{repository}:pull"}
        )
        self._expect(answer, 200)
        if digest_of(answer.body) != digest:
            raise RegistryError(f"{self.domain}/{repository}: blob {digest} is damaged: its bytes have another digest")
        return answer.body

    def has_blob(self, repository: str, digest: str) -> bool:
        answer = self._call(
            "HEAD", f"/v2/{repository}/blobs/{quote(digest, safe=b':')}", {f"repository:{repository}:pull"}
        )
        return answer.status == 200

    # -- what it is given ----------------------------------------------------------------------------------------------

    def put_manifest(self, repository: str, reference: str, media_type: str, raw: bytes) -> str:
        """The digest under which it is there now."""
        answer = self._call(
            "PUT",
            f"/v2/{repository}/manifests/{quote(reference, safe=b':')}",
            {f"repository:{repository}:pull,push"},
            headers={"Content-Type": media_type},
            body=raw,
        )
        self._expect(answer, 201)
        return digest_of(raw)

    def mount(self, repository: str, digest: str, *, origin: str) -> None:
        """Let `repository` have a blob that `origin` has. Idempotent; RegistryError when the registry would not."""
        scopes = {f"repository:{repository}:pull,push", f"repository:{origin}:pull"}
        query = f"mount={quote(digest)}&from={quote(origin)}"
        answer = self._call("POST", f"/v2/{repository}/blobs/uploads/?{query}", scopes)
        if answer.status == 201:
            return
        self._expect(answer, 202)  # it wants an upload instead: which is given up
        if location := answer.headers.get("location"):
            server, path = self._follow(self._find_server(), location)
            self._exchange(server, "DELETE", path, self._authorizer.headers(server, scopes), None)
        if not self.has_blob(repository, digest):
            raise RegistryError(
                f"error mounting {self.domain}/{origin}@{digest} to {self.domain}/{repository}: "
                "the registry does not share blobs between these repositories; push the image to the second one first"
            )

    # -- requests ------------------------------------------------------------------------------------------------------

    def _expect(self, answer: Answer, status: int) -> None:
        if answer.status != status:
            raise RegistryError(refusal(answer))

    def _call(
        self,
        method: str,
        path: str,
        scopes: set[str],
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """One request with what authorization it takes; redirects are followed, without it to other servers."""
        server = origin = self._find_server()
        for _ in range(MAX_REDIRECTS):
            given = dict(headers or {})
            if server.same_as(origin):
                given.update(self._authorizer.headers(origin, scopes))
            answer = self._exchange(server, method, path, given, body)
            if answer.status == 401 and server.same_as(origin):
                self._authorizer.learn(origin, answer.headers.get("www-authenticate", ""), scopes, refusal(answer))
                answer = self._exchange(
                    server, method, path, {**given, **self._authorizer.headers(origin, scopes)}, body
                )
            if answer.status not in REDIRECTS or method not in ("GET", "HEAD"):
                return answer
            server, path = self._follow(server, answer.headers.get("location", ""))
        raise RegistryError(f"{origin}: more than {MAX_REDIRECTS} redirects")

    def _follow(self, server: Server, location: str) -> tuple[Server, str]:
        """Where a Location of `server` leads; never from HTTPS to HTTP."""
        if not location.isprintable() or " " in location:
            raise RegistryError(f"{server} redirects to what is no address: {location!r}")
        if location.startswith("/"):
            return server, location
        target, path = parse_url(location)
        if server.scheme == "https" and target.scheme == "http":
            raise RegistryError(f"{server} redirects to {target}, which is not encrypted: refused")
        return target, path

    def _find_server(self) -> Server:
        """HTTPS if it answers there, else HTTP where that is allowed; the answer is kept."""
        if self._server is not None:
            return self._server
        authority = HUB_HOST if self.domain == HUB else self.domain
        failures: list[str] = []
        schemes = ["https"]
        if self.insecure or is_loopback(parse_server("https", authority).host):
            schemes.append("http")
        for scheme in schemes:
            server = parse_server(scheme, authority)
            try:
                self._kept[str(server)] = self._connect(server)
            except Unanswered as exc:
                failures.append(str(exc))
                continue
            self._server = server
            return server
        hint = "" if len(schemes) > 1 else "; a registry that speaks plain HTTP needs --insecure"
        raise RegistryError(failures[-1] + hint)

    def _connect(self, server: Server) -> Stream:
        proxy = find_proxy(self.environ, server)
        endpoint = Endpoint(shown=str(server), host=server.host, port=server.port)
        endpoint.timeout = SILENCE
        try:
            if server.scheme == "http":
                return proxy.open(SILENCE) if proxy else open_stream(endpoint)
            endpoint.tls = self._find_context()
            return open_stream(
                endpoint, via=proxy.tunnel(f"{server.shown_host}:{server.port}", SILENCE) if proxy else None
            )
        except ConnectError as exc:
            if "certificate verify failed" in str(exc):
                raise RegistryError(f"{server}: {exc}; the authority's certificate belongs in {self.folder}") from exc
            raise Unanswered(f"{server}: {exc}") from exc
        except OSError as exc:
            raise RegistryError(f"{server}: {exc}") from exc

    def _find_context(self) -> SSLContext:
        if self._context is None:
            from wherry.client.tls import make_registry_context

            self._context = make_registry_context(self.folder, verify=not self.insecure)
        return self._context

    def _exchange(self, server: Server, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        """Over the kept connection if there is one that is still open, else over a new one."""
        kept = self._kept.pop(str(server), None)
        if kept is not None and kept.readable():
            kept.close()  # an idle connection has nothing to say but that it was closed
            kept = None
        stream = kept or self._connect(server)
        sent = {"Host": server.authority, "User-Agent": "Wherry-Client/0.1 (linux)", **headers}
        target = path
        if server.scheme == "http" and (proxy := find_proxy(self.environ, server)):
            target = f"{server}{path}"
            sent.update(proxy.headers)
        try:
            send_request(stream, method, target, sent, body)
            response = read_response(stream, method)
            data = bytearray()
            for chunk in response.chunks():
                data += chunk
                if len(data) > MAX_DOCUMENT:
                    raise HTTPError(f"the answer to {method} {path} is longer than {MAX_DOCUMENT >> 20} MiB")
        except (HTTPError, OSError) as exc:
            stream.close()
            raise RegistryError(f"{method} {server}{path}: {exc}") from exc
        except BaseException:
            stream.close()
            raise
        if response.reusable:
            self._kept[str(server)] = stream
        else:
            stream.close()
        return Answer(response.status, response.headers, bytes(data))

    def _ask_token(self, origin: Server, asked: Asked) -> Answer:
        """One request to a token server, which is never spoken to in the clear when the registry was not."""
        server, path = self._follow(origin, asked.url)
        return self._exchange(server, asked.method, path, asked.headers, asked.body)
