"""POST /builds: a build whose client stays at hand. `wherry build` speaks this; the frames are in build_frames.py."""

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import replace

from aiohttp import web

from wherry.api import errors
from wherry.api.build_frames import Frame, Head, Link
from wherry.api.build_output import Document, document
from wherry.api.build_remote import RemoteClient
from wherry.api.call import Call
from wherry.api.hijack import Stream, hijack
from wherry.api.services import Services
from wherry.builder.attributes import from_attributes
from wherry.builder.dockerfile.errors import DockerfileError, excerpt
from wherry.builder.job import Built, Cancelled, Job
from wherry.builder.log import LogEvent
from wherry.builder.options import CacheTransfer, Export, Options
from wherry.builder.run.program import Failure, OnError
from wherry.digest import of
from wherry.errors import InvalidParameter, WherryError

PART = 256 << 10  # bytes of output told in one frame
MANY = 500  # events told in one frame
DIFFERENCE = "wherry.difference"  # of a response: how two builds of the same differ, in words
SHELL = ("/bin/sh",)
CHUNK = 64 << 10


async def open_door(call: Call) -> web.StreamResponse:
    if call.request.headers.get("Upgrade", "").lower() != "tcp":
        raise InvalidParameter("no upgrade: a build by this way takes the connection over (Upgrade: tcp)")
    return await hijack(call, BuildSession(call.services))


class BuildSession:
    """One build, from the client's request to its end."""

    tty = True  # nothing frames the bytes but we

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self, stream: Stream) -> None:
        link = Link(stream)
        with contextlib.suppress(ConnectionError):  # the client is gone: nobody to tell
            try:
                asked = await link.first()
            except InvalidParameter as exc:
                await link.send(Head(type="failed", kind="InvalidParameter", message=exc.message))
                return
            building = asyncio.ensure_future(self._build(link, asked))
            listening = asyncio.ensure_future(link.listen())
            try:
                await asyncio.wait((building, listening), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (building, listening):
                    task.cancel()
                outcomes = await asyncio.gather(building, listening, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, InvalidParameter):  # frames that are none
                    await link.send(Head(type="failed", kind="InvalidParameter", message=outcome.message))
                elif isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
                    errors.record(outcome, "POST /builds")

    async def _build(self, link: Link, asked: Frame) -> None:
        head = asked.head
        try:
            if head.type != "build":
                raise InvalidParameter(f"a build begins with its request, not with {head.type!r}")
            options = self._options(head)
            end = await self._work(link, head, options)
        except WherryError as exc:
            errors.record(exc, "POST /builds")
            end = _failed(exc, None)
        await link.send(end)

    def _options(self, head: Head) -> Options:
        attributes = dict(head.attributes)
        if "host-gateway" in attributes.get("add-hosts", ""):
            gateway = self._services.networks.bridge_gateway
            if not gateway:
                raise InvalidParameter("unable to derive the IP value for host-gateway: there is no default bridge")
            attributes["add-hosts"] = attributes["add-hosts"].replace("=host-gateway", f"={gateway}")
        options = from_attributes(attributes, entitlements=head.entitlements)
        return replace(options, squash=head.squash, cache_exports=_caches(head))

    async def _work(self, link: Link, head: Head, options: Options) -> Head:
        """The last frame."""
        builder = self._services.builder
        client = RemoteClient(link, builder.contexts, node=head.node)
        exports = [Export(type=each.type, attributes=each.attributes) for each in head.exports]
        try:
            job = await builder.begin(
                head.ref,
                client=client,
                attributes=head.attributes,
                exports=exports,
                project=_project(head),
                on_error=_shell(link) if head.shell else None,
            )
            try:
                return await _tell(link, job, _result(job, options, exports, verify=head.verify))
            except BaseException as exc:
                await job.end(error=exc)
                raise
        finally:
            await client.close()


def _caches(head: Head) -> list[CacheTransfer]:
    return [CacheTransfer(type=each.type, attributes=each.attributes) for each in head.cache_exports]


def _project(head: Head) -> str:
    """Builds of one Dockerfile in one directory of one machine are explained by each other."""
    about = [head.attributes.get(key, "") for key in ("filename", "context", "sharedkey:localdir:context")]
    return of("\0".join([head.node, *about]).encode())


async def _result(job: Job, options: Options, exports: list[Export], *, verify: bool) -> tuple[Built, dict[str, str]]:
    if verify:  # what the cache has may be of other times: both builds are made of the same
        options = replace(options, no_cache=True)
    built = await job.frontend(options)
    if built.metadata:
        return built, {}
    response = await job.export(built, exports, options.cache_exports)
    if verify:
        response[DIFFERENCE] = "\n".join(await job.verify(built))
    return built, response


async def _tell(link: Link, job: Job, work: Awaitable[tuple[Built, dict[str, str]]]) -> Head:
    """Do `work` while the client hears of it; the last frame, once the job is over."""
    telling = asyncio.ensure_future(_send_events(link, job))
    cancelling = asyncio.ensure_future(_await_cancel(link, job))
    failure: BaseException | None = None
    built, response = Built(), dict[str, str]()
    try:
        try:
            built, response = await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure = Cancelled("context canceled")
        except Exception as exc:
            failure = exc
        await job.end(error=failure, response=response)  # which ends the log
        await telling
    finally:
        for task_ in (telling, cancelling):
            task_.cancel()
        await asyncio.gather(telling, cancelling, return_exceptions=True)
    if failure is not None:
        errors.record(failure, "POST /builds")
        return _failed(failure, job)
    answers = {name: value.decode("utf-8", "replace") for name, value in built.metadata.items()}
    return Head(type="result", ref=job.ref, response=response, metadata=answers)


def _failed(error: BaseException, job: Job | None) -> Head:
    at = error.location if isinstance(error, DockerfileError) else None
    if job is not None and at is None:
        at = job.failed_at
    return Head(
        type="failed",
        ref=job.ref if job is not None else "",
        kind=type(error).__name__,
        message=errors.message_of(error),
        excerpt=excerpt(at) if at is not None else "",
    )


async def _send_events(link: Link, job: Job) -> None:
    async for batch in job.log:
        found: list[Document] = []
        size = 0
        for event in batch:
            found.append(document(event))
            size += len(event.data) if isinstance(event, LogEvent) else 0
            if size > PART or len(found) >= MANY:
                await link.send(Head(type="events", events=found))
                found, size = [], 0
        if found:
            await link.send(Head(type="events", events=found))


async def _await_cancel(link: Link, job: Job) -> None:
    while True:
        if (await link.control.receive()).head.type == "cancel":
            job.cancel()


# --- a shell where a step failed --------------------------------------------------------------------------------------


def _shell(link: Link) -> OnError:
    """Several steps may fail at the same time: the user looks at one after the other."""
    turn = asyncio.Lock()

    async def look(failure: Failure) -> None:
        async with turn:
            await _look(link, failure)

    return look


async def _look(link: Link, failure: Failure) -> None:
    async with link.ask(Head(type="shell", message=failure.error.message)) as talk:
        try:
            window = (await talk.receive()).head
            async with failure.shell(SHELL) as (shim, (reader, writer)):
                await shim.resize(window.rows, window.columns)

                async def show() -> None:
                    while data := await reader.read(CHUNK):
                        await talk.send_bytes(data)

                async def type_() -> None:
                    while True:
                        for frame in await talk.receive_all():
                            if frame.head.type == "window":
                                await shim.resize(frame.head.rows, frame.head.columns)
                            elif frame.head.type == "end":
                                writer.write_eof()
                            else:
                                writer.write(frame.data)
                                await writer.drain()

                showing, typing = asyncio.ensure_future(show()), asyncio.ensure_future(type_())
                try:
                    await asyncio.wait((showing, typing), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    showing.cancel()
                    typing.cancel()
                    await asyncio.gather(showing, typing, return_exceptions=True)
        except WherryError as exc:  # there is no shell in that image, or the user wants none
            await talk.send_bytes(f"{exc.message}\r\n".encode())
        await talk.send_end()
