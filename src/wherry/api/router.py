"""Which handler answers which path: our own table, since Docker's paths have names with slashes in them.

A path is `/v1.51/...` or the same without a version, which means the newest one. `{name}` in a pattern matches one or
more characters, slashes included; patterns of one first segment are tried in the order they were added. As in Docker,
a path that exists with another method is "page not found", too.
"""

import importlib
import re
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from wherry.api.call import Call, Version, parse_version
from wherry.api.services import API_VERSION, MIN_API_VERSION
from wherry.errors import InvalidParameter, NotFound

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

_VERSIONED = re.compile(r"/v([0-9.]+)(/.*)\Z", re.DOTALL)
_HOLE = re.compile(r"\{([a-z_]+)\}")
_MAX = parse_version(API_VERSION)
_MIN = parse_version(MIN_API_VERSION)
_NOTHING: Mapping[str, str] = {}

# What podman, buildah and skopeo ask for (`docker-daemon:NAME`), for years by version 1.22: the same in all versions.
_UNCHANGED = frozenset({"/images/get", "/images/load"})
_UNCHANGED_SINCE = parse_version("1.22")


def later(module: str, name: str) -> Handler:
    """The handler `name` of `module`, which is loaded by the first request."""

    async def handle(call: Call) -> web.StreamResponse:
        handler: Handler = getattr(importlib.import_module(module), name)
        return await handler(call)

    return handle


class Router:
    """Routes by method and path; filled at start-up, then only read."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Handler] = {}
        self._patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Handler]]] = {}

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        if "{" not in pattern:
            self._exact[method, pattern] = handler
            return
        parts = _HOLE.split(pattern)  # text, name, text, name, text
        source = "".join(re.escape(part) if n % 2 == 0 else f"(?P<{part}>.+)" for n, part in enumerate(parts))
        compiled = re.compile(source + r"\Z", re.DOTALL)
        self._patterns.setdefault((method, _first_segment(pattern)), []).append((compiled, handler))

    def find(self, method: str, path: str) -> tuple[Handler, Version, Mapping[str, str]]:
        """The handler, the API version the client speaks, and what the pattern's holes caught.

        Raises InvalidParameter for a version we do not speak, NotFound for a path or method we do not have.
        """
        version, rest = split_version(path)
        exact = self._exact.get((method, rest))
        if exact is not None:
            return exact, version, _NOTHING
        for pattern, handler in self._patterns.get((method, _first_segment(rest)), ()):
            if match := pattern.match(rest):
                return handler, version, match.groupdict()
        raise NotFound("page not found")


def split_version(path: str) -> tuple[Version, str]:
    """Take the version off a path; raises InvalidParameter, in Docker's words, outside what we speak."""
    match = _VERSIONED.match(path)
    if match is None:
        return _MAX, path
    asked = parse_version(match[1])
    if asked < _MIN and not (match[2] in _UNCHANGED and asked >= _UNCHANGED_SINCE):
        raise InvalidParameter(
            f"client version {match[1]} is too old. Minimum supported API version is {MIN_API_VERSION}, "
            "please upgrade your client to a newer version"
        )
    if asked > _MAX:
        raise InvalidParameter(f"client version {match[1]} is too new. Maximum supported API version is {API_VERSION}")
    return asked, match[2]


def _first_segment(path: str) -> str:
    return path.split("/", 2)[1] if path.startswith("/") else ""
