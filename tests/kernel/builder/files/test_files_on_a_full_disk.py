"""A step that the disk has no room for: said in words, nothing left open."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.descriptors import descriptors
from wherry.builder.files.apply import apply
from wherry.builder.files.select import select
from wherry.builder.graph import Action, Copy, MakeFile
from wherry.errors import Failed
from wherry.kernel import mount


def on_a_small_disk(point: Path, work: Callable[[int], None]) -> None:
    """`work` with the root of a file system of 1 MiB, in a thread that takes it along when it ends."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            mount.unshare_mounts()
            mount.make_rprivate("/")
            mount.mount(mount.Mount(type="tmpfs", source="tmpfs", options=("size=1m",)), point)
            fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
            try:
                work(fd)
            finally:
                os.close(fd)
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Copy(source="big", target="/to/"), "cannot copy /big: No space left on device in /to/big: make room"),
        (Copy(source="small", target="/to/"), "cannot copy /small/f"),
        (MakeFile(path="/f", data=bytes(2 << 20)), "No space left on device"),
    ],
)
def test_a_full_disk_is_told_with_the_file_and_the_remedy(tmp_path: Path, action: Action, words: str) -> None:
    (tmp_path / "source/small").mkdir(parents=True)
    (tmp_path / "source/big").write_bytes(os.urandom(2 << 20))
    for number in range(40):
        (tmp_path / f"source/small/f{number}").write_bytes(os.urandom(50_000))
    (tmp_path / "disk").mkdir()
    source = os.open(tmp_path / "source", os.O_RDONLY)
    before = descriptors()

    def work(target: int) -> None:
        selection = select(source, action) if isinstance(action, Copy) else None
        with pytest.raises(Failed) as caught:
            apply(target, action, source, selection, epoch_ns=0, name_lookup=None)
        assert words in caught.value.message
        assert "make room" in caught.value.message

    try:
        on_a_small_disk(tmp_path / "disk", work)
        assert descriptors() == before
    finally:
        os.close(source)
