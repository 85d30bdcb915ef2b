"""File actions on real snapshots: the steps of a build by hand."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry import digest
from wherry.builder.files.apply import apply
from wherry.builder.files.select import select
from wherry.builder.files.times import settle_times
from wherry.builder.graph import Action, Copy
from wherry.digest import ChainID
from wherry.kernel.mount import detached
from wherry.storage import diff
from wherry.storage.archive import Entry, TarReader
from wherry.storage.native import NativeSnapshotter
from wherry.storage.overlay import OverlaySnapshotter

EPOCH = 1_600_000_000


class Build:
    """Layers on layers."""

    def __init__(self, snapshots: Any, context: Path) -> None:
        self.snapshots = snapshots
        self.context = context
        self.layer: dict[str, Entry] = {}  # entries of the last layer
        self.content: dict[str, bytes] = {}

    @contextlib.contextmanager
    def open(self, source: ChainID | Path | None) -> Iterator[int]:
        if isinstance(source, Path):
            fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
            try:
                yield fd
            finally:
                os.close(fd)
            return
        with detached(self.snapshots.view(source)) as fd:
            yield fd

    def step(self, parent: ChainID | None, *actions: Action, source: Any = None, epoch: int | None = EPOCH) -> ChainID:
        """Do actions; copies take from `source`, by default the context."""

        def work(root: int) -> None:
            for action in actions:
                epoch_ns = None if epoch is None else epoch * 10**9
                if isinstance(action, Copy):
                    with self.open(source if source is not None else self.context) as fd:
                        chosen = select(fd, action)
                        apply(root, action, fd, chosen, epoch_ns=epoch_ns, name_lookup=root)
                else:
                    apply(root, action, epoch_ns=epoch_ns, name_lookup=root)

        return self.commit(parent, work)

    def run(self, parent: ChainID | None, work: Callable[[Path], None], *, epoch: int = EPOCH) -> ChainID:
        """As a program would."""
        return self.commit(parent, lambda root: work(Path(f"/proc/self/fd/{root}")), settle=epoch)

    def commit(self, parent: ChainID | None, work: Callable[[int], None], *, settle: int | None = None) -> ChainID:
        self.snapshots.prepare("step", parent)
        try:
            with detached(self.snapshots.mounts("step")) as root:
                work(root)
            if settle is not None:
                self._settle(parent, settle)
            data = bytearray()
            written = diff.write_diff(self.snapshots, "step", data.extend)
            self._read(bytes(data))
            chain = digest.extend_chain(parent, written.diff_id)
            self.snapshots.commit("step", chain)
            return chain
        finally:
            self.snapshots.remove("step")

    def _settle(self, parent: ChainID | None, epoch: int) -> None:
        with detached(self.snapshots.view(parent)) as below:
            upper = self.snapshots.upper("step")
            settle_times(upper, epoch * 10**9, self.snapshots.whiteouts, below=below)

    def _read(self, data: bytes) -> None:
        self.layer, self.content = {}, {}
        reader = TarReader(iter([data]))
        for entry in reader:
            name = os.fsdecode(entry.name)
            self.layer[name] = entry
            self.content[name] = b"".join(bytes(piece) for piece in reader.data())


@pytest.fixture(params=[OverlaySnapshotter, NativeSnapshotter], ids=["overlay", "native"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Build]:
    context = tmp_path / "context"
    context.mkdir()
    snapshots = request.param(tmp_path / "root")
    yield Build(snapshots, context)
    snapshots.close()


@pytest.fixture
def native(tmp_path: Path) -> Iterator[Build]:
    snapshots = NativeSnapshotter(tmp_path / "native")
    yield Build(snapshots, tmp_path)
    snapshots.close()


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Build]:
    snapshots = OverlaySnapshotter(tmp_path / "overlay")
    yield Build(snapshots, tmp_path)
    snapshots.close()
