"""Webhooks: what happens in the registry, posted to others in the envelope of docker's distribution.

    POST <url>    {"events": [{"id", "timestamp", "action", "target", "request", "actor", "source"}]}
    X-Wherry-Signature: sha256=<HMAC of the body with the endpoint's secret>

Every endpoint has its own queue in memory and gets its events in order, one request at a time; no push or pull waits
for it. While it is away events wait, up to QUEUE of them; then the oldest are dropped, counted and logged. What an
endpoint refuses for good (a 4xx nobody can mend) is dropped: asking again would only hold up the others.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec

from wherry.errors import InvalidParameter
from wherry.registry.hooks import Happening
from wherry.registry.telling.metrics import Family, labelled

log = logging.getLogger(__name__)

ACTIONS = ("pull", "push", "mount", "delete")
MEDIA_TYPE = "application/vnd.docker.distribution.events.v1+json"
SIGNATURE = "X-Wherry-Signature"
QUEUE = 10_000  # events that wait for one endpoint
BATCH = 100  # events in one request
FIRST_PAUSE = 1.0  # seconds before the second try, doubled with every further one …
LONGEST_PAUSE = 60.0  # … up to this
MENDABLE = frozenset({401, 403, 404, 408, 429})  # refusals that somebody may mend: they are tried again


class WebhookConfig(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    url: str
    secret_file: str = ""  # its first line signs the requests
    headers: dict[str, str] = {}  # sent along: an Authorization, say
    actions: list[str] = msgspec.field(default_factory=lambda: ["push", "mount", "delete"])
    repositories: list[str] = msgspec.field(default_factory=lambda: ["*"])  # shell patterns; * goes across slashes
    timeout: float = 10.0  # seconds for one request


def check(webhooks: Sequence[WebhookConfig]) -> None:
    """InvalidParameter for what can never work."""
    for each in webhooks:
        parts = urlsplit(each.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidParameter(f"webhooks: invalid url {each.url!r}: want http(s)://host[:port]/path")
        if wrong := [action for action in each.actions if action not in ACTIONS]:
            raise InvalidParameter(f"webhooks: unknown action {wrong[0]!r}: want {', '.join(ACTIONS)}")
        if each.timeout <= 0:
            raise InvalidParameter(f"webhooks: the timeout of {each.url} must be more than 0 seconds")


def read_secret(config: WebhookConfig) -> bytes:
    """What signs its requests; b"" when nothing does (blocking). InvalidParameter."""
    if not config.secret_file:
        return b""
    try:
        secret = Path(config.secret_file).read_bytes().partition(b"\n")[0].strip()
    except OSError as exc:
        raise InvalidParameter(f"webhooks: cannot read the secret {config.secret_file}: {exc.strerror}") from exc
    if not secret:
        raise InvalidParameter(f"webhooks: the secret in {config.secret_file} is empty")
    return secret


def sign(secret: bytes, body: bytes) -> str:
    """The value of the signature's header."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def event(happening: Happening, *, host: str, at: float) -> dict[str, object]:
    """One event of the envelope. `host`: what clients call the registry; `at`: seconds since the epoch."""
    target: dict[str, object] = {"repository": happening.repository}
    if happening.digest:
        target["digest"] = happening.digest
    if happening.media_type:
        kind = "blobs" if happening.media_type == "application/octet-stream" else "manifests"
        target |= {
            "mediaType": happening.media_type,
            "size": happening.size,
            "length": happening.size,
            "url": f"{host}/v2/{happening.repository}/{kind}/{happening.digest}",
        }
    if happening.tag:
        target["tag"] = happening.tag
    id = str(uuid.uuid4())
    return {
        "id": id,
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at * 1e6) % 1_000_000:06d}Z",
        "action": happening.action,
        "target": target,
        "request": {
            "id": happening.request_id or id,
            "addr": happening.address,
            "host": host.partition("://")[2],
            "method": happening.method,
            "useragent": happening.user_agent,
        },
        "actor": {"name": happening.actor} if happening.actor else {},
        "source": {"addr": host.partition("://")[2], "instanceID": _INSTANCE},
    }


_INSTANCE = str(uuid.UUID(bytes=os.urandom(16), version=4))


class Endpoint:
    """One receiver and the events that wait for it."""

    def __init__(
        self,
        config: WebhookConfig,
        secret: bytes,
        *,
        queue: int = QUEUE,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = config.url
        self.sent = self.dropped = self.failures = 0  # events, events, requests
        self._config = config
        self._secret = secret
        self._limit = queue
        self._sleep = sleep
        self._queue: deque[dict[str, object]] = deque()
        self._more = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def wants(self, happening: Happening) -> bool:
        config = self._config
        return happening.action in config.actions and any(
            fnmatchcase(happening.repository, pattern) for pattern in config.repositories
        )

    def put(self, event: dict[str, object]) -> None:
        if len(self._queue) >= self._limit:
            self._queue.popleft()
            if self.dropped % self._limit == 0:
                log.error("%s does not take events: the oldest of more than %d are dropped", self.url, self._limit)
            self.dropped += 1
        self._queue.append(event)
        self._more.set()

    async def deliver(self, session: aiohttp.ClientSession) -> None:
        """For ever: post what waits, in order."""
        pause = FIRST_PAUSE
        while True:
            await self._more.wait()
            batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            if not batch:
                self._more.clear()
                continue
            try:
                await self._post(session, batch)
            except _LaterError as exc:
                self._give_back(batch)
                self.failures += 1
                log.warning("webhook %s: %s; %d events wait, next try in %.0f s", self.url, exc, self.waiting, pause)
                await self._sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, LONGEST_PAUSE)
            except BaseException:
                self._give_back(batch)
                raise
            else:
                pause = FIRST_PAUSE

    def _give_back(self, batch: Sequence[dict[str, object]]) -> None:
        """What was not taken goes before what came meanwhile; the oldest are dropped when there is no room."""
        room = self._limit - len(self._queue)
        kept = batch[max(0, len(batch) - room) :] if room > 0 else []
        self.dropped += len(batch) - len(kept)
        self._queue.extendleft(reversed(kept))

    async def _post(self, session: aiohttp.ClientSession, batch: Sequence[dict[str, object]]) -> None:
        """Deliver the events, or drop what is refused for good. _LaterError when it must be tried again."""
        body = msgspec.json.encode({"events": batch})
        headers = {**self._config.headers, "Content-Type": MEDIA_TYPE}
        if self._secret:
            headers[SIGNATURE] = sign(self._secret, body)
        timeout = aiohttp.ClientTimeout(total=self._config.timeout)
        try:
            async with session.post(
                self.url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                status = answer.status
        except TimeoutError:
            raise _LaterError(f"no answer within {self._config.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as exc:
            raise _LaterError(str(exc) or type(exc).__name__) from exc
        if 200 <= status < 300:
            self.sent += len(batch)
        elif 400 <= status < 500 and status not in MENDABLE:
            log.error("webhook %s refused %d events with status %d: they are dropped", self.url, len(batch), status)
            self.dropped += len(batch)
        else:
            raise _LaterError(f"status {status}")


class _LaterError(Exception):
    """The endpoint did not take the events; it may later."""


class Notifier:
    """The `happened` hook of all endpoints."""

    def __init__(self, endpoints: Sequence[Endpoint], *, host: str, clock: Callable[[], float] = time.time) -> None:
        """`host`: scheme and address clients reach the registry by."""
        self.endpoints = endpoints
        self._host = host
        self._clock = clock

    def happened(self, happening: Happening) -> None:
        wanting = [endpoint for endpoint in self.endpoints if endpoint.wants(happening)]
        if wanting:
            made = event(happening, host=self._host, at=self._clock())
            for endpoint in wanting:
                endpoint.put(made)

    def families(self) -> list[Family]:
        """How the endpoints do, for the metrics."""
        ends = self.endpoints
        return [
            labelled(
                "webhook_events_waiting",
                "Events not delivered yet.",
                "url",
                {each.url: each.waiting for each in ends},
                kind="gauge",
            ),
            labelled("webhook_events_sent_total", "Events delivered.", "url", {each.url: each.sent for each in ends}),
            labelled(
                "webhook_events_dropped_total", "Events given up.", "url", {each.url: each.dropped for each in ends}
            ),
            labelled(
                "webhook_failures_total", "Requests made again.", "url", {each.url: each.failures for each in ends}
            ),
        ]

    async def deliver(self) -> None:
        """For ever: every endpoint by its own task."""
        try:
            async with (
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
                asyncio.TaskGroup() as group,
            ):
                for endpoint in self.endpoints:
                    group.create_task(endpoint.deliver(session))
        finally:
            for endpoint in self.endpoints:
                if endpoint.waiting:
                    log.warning("webhook %s: %d events were not delivered", endpoint.url, endpoint.waiting)


def make(webhooks: Sequence[WebhookConfig], *, host: str) -> Notifier:
    """With the secrets read (blocking). InvalidParameter."""
    return Notifier([Endpoint(each, read_secret(each)) for each in webhooks], host=host)
