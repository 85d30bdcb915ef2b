"""GET /events: one JSON document a line, the kept ones first, then as they come."""

import asyncio
import contextlib
import time
from collections.abc import Iterable

import msgspec
from aiohttp import web

from wherry.api.call import Call
from wherry.api.connection import JSON
from wherry.api.router import Router
from wherry.containers.views.times import parse_time
from wherry.errors import InvalidParameter
from wherry.events import Event
from wherry.filters import Filters
from wherry.reference import parse as parse_reference

FILTERS = (
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
)
_NAMED = ("daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config")
_WITH_DETAIL = ("health_status", "exec_create", "exec_start")  # their actions go on after a colon

_encode = msgspec.json.Encoder().encode


def add(router: Router) -> None:
    router.add("GET", "/events", events)


async def events(call: Call) -> web.StreamResponse:
    since, until = _time(call, "since"), _time(call, "until")
    if since is not None and until is not None and since > until:
        raise InvalidParameter(
            f"`since` time ({call.text('since')}) cannot be after `until` time ({call.text('until')})"
        )
    filters = call.filters()
    filters.check(FILTERS)
    hub = call.services.events
    with hub.subscribe() as subscription:
        now = time.time_ns()
        past = [] if since is None and (until is None or until > now) else hub.past(since or 0, until or now)
        response = await call.stream(JSON)
        await _send(response, past, filters)
        if until is not None and until <= now:
            return response
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if until is None else (until - now) / 1e9):
                async for event in subscription:
                    await _send(response, [event], filters)
    return response


def _time(call: Call, name: str) -> int | None:
    return parse_time(text, now=time.time_ns()) if (text := call.text(name)) else None


async def _send(response: web.StreamResponse, found: Iterable[Event], filters: Filters) -> None:
    lines = b"".join(_encode(document(event)) + b"\n" for event in found if not filters or wanted(event, filters))
    if lines:
        await response.write(lines)


def document(event: Event) -> dict[str, object]:
    """Docker's event, with the keys of old that clients still read."""
    found: dict[str, object] = {}
    if event.type in ("container", "image"):
        found |= {"status": event.action, "id": event.actor}
        if event.type == "container" and (image := event.attributes.get("image")):
            found["from"] = image
    return found | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor, "Attributes": event.attributes},
        "scope": event.scope,
        "time": event.time // 10**9,
        "timeNano": event.time,
    }


def wanted(event: Event, filters: Filters) -> bool:
    """Docker's rules: names and ids by their beginning, images by reference with or without tag."""
    actions = filters.get("event")
    matches = filters.prefix if any(action in _WITH_DETAIL for action in actions) else filters.exact
    return (
        matches("event", event.action)
        and filters.exact("type", event.type)
        and filters.exact("scope", event.scope)
        and all(_named(event, filters, key) for key in _NAMED)
        and _image(event, filters)
        and filters.labels(event.attributes)
    )


def _named(event: Event, filters: Filters, key: str) -> bool:
    return filters.prefix(key, event.actor) or filters.prefix(key, event.attributes.get("name", ""))


def _image(event: Event, filters: Filters) -> bool:
    if "image" not in filters:
        return True
    name = event.attributes.get("image" if event.type == "container" else "name", "")
    return filters.exact("image", event.actor, name, _untagged(event.actor), _untagged(name))


def _untagged(name: str) -> str:
    try:
        return parse_reference(name).familiar_name
    except InvalidParameter:
        return name
