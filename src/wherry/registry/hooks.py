"""Where policy meets the server: who may, how much, what is told to whom, where else to look.

The server calls these; each has a default that lets everything happen. Access, quota, notifications, metrics and the
pull-through cache are plugged in by `main` and by the daemon.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiohttp import web

from wherry.digest import Digest


@dataclass(frozen=True, slots=True)
class Access:
    """What a request wants to do: `pull`, `push` or `delete` in a repository; `*` on the catalog (repository "")."""

    repository: str
    action: str
    alias: str = ""  # what the client calls the repository, when that is not its name (see `locate`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that was done, for notifications and metrics."""

    action: str  # pull, push, mount, delete
    repository: str
    digest: str = ""
    tag: str = ""
    media_type: str = ""
    size: int = 0  # bytes
    actor: str = ""  # who; "" = anonymous
    request_id: str = ""
    address: str = ""  # of the client
    method: str = ""
    user_agent: str = ""


async def allow(request: web.Request, wanted: Sequence[Access]) -> str:
    """Everybody may do everything, without a name."""
    return ""


async def as_asked(request: web.Request, repository: str) -> str:
    """The repository of that name."""
    return repository


async def no_list(request: web.Request, repository: str) -> list[str] | None:
    """The store's."""
    return None


async def no_limit(repository: str, size: int) -> None:
    """Any amount."""


def nobody_listens(happening: Happening) -> None:
    """Told to nobody."""


async def nowhere_else(request: web.Request, repository: str, name: str) -> bool:
    """There is no other place to look."""
    return False


async def no_stream(request: web.Request, repository: str, digest: Digest) -> web.StreamResponse | bool | None:
    """There is no other place to look."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    authorise: Callable[[web.Request, Sequence[Access]], Awaitable[str]] = allow
    """The name of who asks; raises UNAUTHORIZED (with its challenge in the headers) or DENIED. Called for every request
    before anything else; with no access wanted for `/v2/` itself."""

    before_write: Callable[[str, int], Awaitable[None]] = no_limit
    """A repository is about to grow by so many bytes (0: a mount, a deletion, or a size not known yet; asked again
    while an upload grows, and for the manifest). Raises DENIED (quota) or UNSUPPORTED (read-only)."""

    happened: Callable[[Happening], None] = nobody_listens

    before_manifest: Callable[[web.Request, str, str], Awaitable[bool]] = nowhere_else
    """A manifest (by tag or digest) is about to be read: a pull-through cache brings or renews it in the store."""

    missing_blob: Callable[[web.Request, str, Digest], Awaitable[web.StreamResponse | bool | None]] = no_stream
    """A blob is not in the store: a pull-through cache answers the request, storing the blob on its way; or says True
    when the blob is in the store now. None: it is nowhere."""

    tags: Callable[[web.Request, str], Awaitable[list[str] | None]] = no_list
    """The sorted tags of a repository when another registry has more of them; None: the store's are all."""

    locate: Callable[[web.Request, str], Awaitable[str]] = as_asked
    """Which repository of the store a request for one is about: a mirror is asked for other registries' names."""
