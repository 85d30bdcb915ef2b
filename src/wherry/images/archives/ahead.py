"""Ahead: layers of an archive are unpacked while the rest of it still comes.

As soon as a config has passed by, and the blob of its next layer, that layer can be unpacked: reading and unpacking,
on a machine with more than one processor, take only as long as the slower of them. An archive need not be in the best
order for that (ours is: documents, then layers base first), and which images are wanted is known in the end only: what
turns out not to be needed goes with the lease.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from wherry.aio import settle
from wherry.digest import ChainID, DiffID, Digest, extend_chain
from wherry.errors import WherryError
from wherry.images.archives.contents import LAYER_TYPES
from wherry.images.archives.spool import File, keep
from wherry.images.deps import Deps
from wherry.images.layers import short, unpack
from wherry.images.leases import Lease
from wherry.images.progress import Bar, Progress
from wherry.images.record import Layer
from wherry.spec.image import (
    Descriptor,
    ImageConfig,
    Manifest,
    Platform,
    decode_config,
    decode_manifest,
    runs_on,
)

MAX_STACKS = 100  # configs that are remembered

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stack:
    """The layers of one config."""

    diff_ids: Sequence[DiffID]
    done: int = 0  # so many are unpacked
    chain: ChainID | None = None  # of those
    given_up: bool = False


class Unpacking:
    """Layers being unpacked, each once, and the errors of those that failed."""

    def __init__(self, deps: Deps, lease: Lease, progress: Progress | None, wanted: Sequence[Platform]) -> None:
        self._deps = deps
        self._lease = lease
        self._progress = progress
        self._wanted = wanted
        self._known: dict[ChainID, Layer | WherryError] = {}
        self._files: dict[Digest, File] = {}
        self._stacks: dict[Digest, _Stack] = {}
        self._blobs: dict[Digest, Sequence[Descriptor]] = {}  # the layers of a config, from its manifest
        self._news = asyncio.Event()
        self._complete = False

    # --- what passes by -----------------------------------------------------------------------------------------------

    def arrived(self, file: File, document: ImageConfig | Manifest | None) -> None:
        """A file of the archive is complete; `document` when it is one."""
        self._files[file.digest] = file
        if isinstance(document, Manifest):
            self._blobs[document.config.digest] = document.layers
        elif document is not None and len(self._stacks) < MAX_STACKS and self._is_wanted(document):
            self._stacks.setdefault(file.digest, _Stack(document.rootfs.diff_ids))
        self._news.set()

    def _is_wanted(self, config: ImageConfig) -> bool:
        return not self._wanted or any(runs_on(config.platform, platform) for platform in self._wanted)

    def close(self) -> None:
        """The archive is complete: `run` ends, with the layer it is at."""
        self._complete = True
        self._news.set()

    async def run(self) -> None:
        """Unpack what can be unpacked, until `close`."""
        while True:
            await self._news.wait()
            self._news.clear()
            for stack, blob in self._ready():
                if self._complete:
                    return
                await self._step(stack, blob)
            if self._complete:
                return

    def _ready(self) -> Iterator[tuple[_Stack, Descriptor]]:
        """The next layer of a stack, as long as there is one whose blob is there."""
        found = True
        while found:
            found = False
            for config, stack in list(self._stacks.items()):
                if (blob := self._next(config, stack)) is not None:
                    found = True
                    yield stack, blob

    def _next(self, config: Digest, stack: _Stack) -> Descriptor | None:
        if stack.given_up or stack.done >= len(stack.diff_ids):
            return None
        listed = self._blobs.get(config, ())
        if len(listed) == len(stack.diff_ids):
            blob = listed[stack.done]
            return blob if blob.digest in self._files else None
        file = self._files.get(Digest(stack.diff_ids[stack.done]))  # a plain tar bears the name of its content
        if file is None or file.compression not in LAYER_TYPES:
            return None
        return Descriptor(media_type=LAYER_TYPES[file.compression], digest=file.digest, size=file.size)

    async def _step(self, stack: _Stack, blob: Descriptor) -> None:
        try:
            await self._lease.protect(digests=[blob.digest])
            await settle(keep, self._deps.content, self._files[blob.digest])
            layer = await self.layer(blob, stack.chain, stack.diff_ids[stack.done])
        except (WherryError, OSError) as exc:
            log.debug("layer %s cannot be unpacked ahead: %s", blob.digest, exc)
            stack.given_up = True  # when it is needed the error comes up again
        else:
            stack.done += 1
            stack.chain = layer.chain

    # --- layers -------------------------------------------------------------------------------------------------------

    async def layer(self, blob: Descriptor, parent: ChainID | None, diff_id: DiffID) -> Layer:
        """The layer of `blob`, which is held, on `parent`. Raises as `unpack`, and the same again."""
        chain = extend_chain(parent, diff_id)
        known = self._known.get(chain)
        if known is None:
            try:
                known = await self._unpack(blob, parent, diff_id, chain)
            except WherryError as exc:
                known = exc
            self._known[chain] = known
        if isinstance(known, WherryError):
            raise known
        return replace(known, digest=blob.digest, media_type=blob.media_type, size=blob.size)

    async def _unpack(self, blob: Descriptor, parent: ChainID | None, diff_id: DiffID, chain: ChainID) -> Layer:
        if self._progress is None or await settle(self._deps.snapshots.has, chain):
            return await unpack(self._deps, self._lease, blob, parent=parent, diff_id=diff_id)
        bar = Bar(self._progress, short(Digest(diff_id)))

        def loading(current: int) -> None:
            bar.show("Loading layer", current, blob.size)

        layer = await unpack(self._deps, self._lease, blob, parent=parent, diff_id=diff_id, extracting=loading)
        loading(blob.size)
        return layer


def document_of(file: File) -> ImageConfig | Manifest | None:
    """What a small file is, if it is a document of an image."""
    data = file.data
    if data is None or not data.startswith(b"{"):
        return None
    with suppress(WherryError):
        if b'"diff_ids"' in data:
            return decode_config(data)
        if b'"layers"' in data:
            document = decode_manifest(data)
            return document if isinstance(document, Manifest) else None
    return None
