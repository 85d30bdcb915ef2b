"""Types local and tar: the files of the result, into a directory of the client's or as one tar. No image is made.

Several platforms have a directory each, `linux_arm64`. What is stated about a result comes as files beside its own.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.aio import settle
from wherry.builder.export.attest import encode_statement
from wherry.builder.export.work import Telling, Variant, Work, telling
from wherry.errors import InvalidParameter
from wherry.images.feed import produce
from wherry.kernel.mount import Mount, detached
from wherry.storage.archive import Entry, Kind
from wherry.storage.archive_writer import TarWriter
from wherry.storage.pack import Packer
from wherry.storage.tree import walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The files of one platform."""

    variant: Variant
    mounts: Sequence[Mount]
    prefix: str  # the directory it is in; "" for none
    files: Mapping[str, bytes]  # besides: the statements


async def export_local(work: Work, attributes: Mapping[str, str], number: int) -> dict[str, str]:
    """Into the client's directory of output `number`."""
    with telling(work.log, "exporting to client directory") as lines:
        for part in await _parts(work, attributes):
            platform = f" {part.variant.platform}" if len(work.variants) > 1 else ""
            with lines.step(f"copying files{platform}"), detached(part.mounts) as root:
                await _send(work, number, Path(f"/proc/self/fd/{root}"), part.prefix, lines, f"copying files{platform}")
            if part.files:
                with tempfile.TemporaryDirectory(prefix="wherry-") as scratch:
                    for name, data in part.files.items():
                        Path(scratch, name).write_bytes(data)
                    await _send(work, number, Path(scratch), part.prefix, lines, "copying attestations")
    return {}


async def _send(work: Work, number: int, root: Path, prefix: str, lines: Telling, text: str) -> None:
    started = time.time_ns()

    def transferred(current: int) -> None:
        lines.progress(text, current, 0, started=started)

    await work.client.send_directory(number, root, transferred, prefix=prefix)


async def export_tar(work: Work, attributes: Mapping[str, str], number: int) -> dict[str, str]:
    """As one archive: the same result gives the same bytes."""
    with telling(work.log, "exporting to client tarball") as lines:
        parts = await _parts(work, attributes)

        def write(out: Callable[[bytes], object]) -> None:
            write_files(parts, out, epoch=work.epoch)

        with lines.step("sending tarball"):
            await work.client.send_stream(number, {}, produce(write))
    return {}


def write_files(parts: Sequence[Part], out: Callable[[bytes], object], *, epoch: int) -> None:
    """All parts, with their statements, to `out` (blocking)."""
    writer = TarWriter(out)
    for part in parts:
        base = part.prefix.encode()
        if base:
            directory = Entry(base, Kind.DIRECTORY)
            directory.mode, directory.mtime = 0o755, epoch
            writer.add(directory)
        packer = Packer(writer)
        with detached(part.mounts) as root:
            for listing in walk(root):
                prefix = b"/".join(filter(None, (base, listing.path)))
                for file, found in listing.entries:
                    packer.add(listing.fd, file, prefix + b"/" + file if prefix else file, found)
        for name, data in part.files.items():
            path = name.encode()
            entry = Entry(base + b"/" + path if base else path, Kind.FILE)
            entry.mode, entry.size, entry.mtime = 0o600, len(data), epoch
            writer.add(entry, [data])
    writer.finish()


async def _parts(work: Work, attributes: Mapping[str, str]) -> list[Part]:
    several = work.indexed or len(work.variants) > 1
    said = attributes.get("platform-split", "")
    if said not in ("", "true", "false", "1", "0"):
        raise InvalidParameter(f"non-bool value {said[:50]!r} specified for platform-split")
    split = said in ("true", "1") if said else several
    beginning = attributes.get("attestation-prefix", "")
    if "/" in beginning or "\0" in beginning:
        raise InvalidParameter(f"invalid attestation-prefix {beginning[:50]!r}: it is the beginning of a file's name")
    found = []
    for variant in work.variants:
        tree = await work.bring(variant.tree)
        found.append(
            Part(
                variant=variant,
                mounts=await settle(work.deps.snapshots.view, tree.chain),
                prefix=variant.directory if split else "",
                files={
                    beginning + each.name: encode_statement(each, [])
                    for each in variant.statements
                    if not each.inline_only
                },
            )
        )
    return found
