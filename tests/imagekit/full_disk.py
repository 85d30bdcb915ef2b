"""`python full_disk.py REGISTRY SCRATCH`: every verb on a disk that is full; run in a mount namespace of its own.

The stores are on a small tmpfs. Each verb is done with less and less in its way until it works; every time it does not,
it must say so in words, leave everything as it was, and work when there is room. One line of JSON at the end.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from imagekit.making import tar
from imagekit.world import World
from wherry.errors import WherryError
from wherry.images.archives.load import load
from wherry.images.archives.save import save
from wherry.images.garbage import collect_all
from wherry.images.making.commit import commit
from wherry.images.making.convert import convert
from wherry.images.making.import_ import import_
from wherry.images.progress import quiet
from wherry.images.transfer.pull import pull
from wherry.images.upkeep.check import check
from wherry.images.upkeep.recover import recover
from wherry.images.upkeep.remove import remove
from wherry.kernel import mount
from wherry.kernel.mount import Mount
from wherry.spec.engine import ContainerConfig
from wherry.storage.overlay import OverlaySnapshotter

SIZE = 24 << 20  # bytes of the file system; a twentieth of it stays free of layers
LEVELS = [0, 4, 12, 40, 100, 200, 400, 800, 1200, 1600, 2000, 2400, 3200, 4800, 8000, 16000]  # KiB left free
if not os.environ.get("WHERRY_TEST_LEVELS"):  # "all"
    LEVELS = [0, 40, 800, 1600, 2400, 16000]
WORDS = ("no space left on device", "stay free", "disk is full")
REMEDY = "make room"

Verb = Callable[[World], Awaitable[object]]


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


def fill(root: Path, left: int) -> None:
    """Nothing but `left` bytes stay free."""
    with open(root / "filler", "wb", buffering=0) as file:
        found = os.statvfs(root)
        size = found.f_bavail * found.f_frsize - left
        done = 0
        try:
            while done < size:
                done += file.write(bytes(min(size - done, 1 << 20)))
        except OSError:
            pass


class Trial:
    def __init__(self, root: Path, registry: str, archive: bytes) -> None:
        self.root, self.registry, self.archive = root, registry, archive
        self.refusals: dict[str, list[str]] = {}

    def world(self) -> World:
        self.root.joinpath("store").mkdir(exist_ok=True)
        return World(self.root / "store", OverlaySnapshotter(self.root / "store"))

    async def verb(self, name: str, act: Verb, *, base: bool) -> None:
        """`base`: an image is there before, with a container on it that wrote something."""
        refusals = self.refusals[name] = []
        for level in LEVELS:
            world = self.world()
            if base:
                image = await pull(world.deps, f"{self.registry}/x:1", progress=quiet)
                world.snapshots.prepare("box", image.chain)
                (world.snapshots.upper("box") / "new").write_bytes(os.urandom(700_000))
            world.snapshots.close()
            before = world.held()
            fill(self.root, level << 10)
            try:
                await act(world)
                worked = True
            except WherryError as exc:
                worked = False
                refusals.append(exc.message)
            world.snapshots.close()
            (self.root / "filler").unlink()
            if not worked:
                said = refusals[-1]
                assert any(words in said.lower() for words in WORDS), said
                assert REMEDY in said, said
                assert world.held() == before, (name, level, world.held(), before)
                assert not world.partials(), (name, level)
                found = await check(world.deps, quick=True, snapshots=lambda: {"box"}, progress=quiet)
                assert found.problems == [], (name, level, found.problems)
                await act(world)  # now there is room
            found = await check(world.deps, snapshots=lambda: {"box"}, progress=quiet)
            assert found.problems == [], (name, level, found.problems)
            world.snapshots.remove("box")
            for image in sorted(world.deps.store.all(), key=lambda image: -len(image.layers)):
                await remove(world.deps, image.id, force=True, in_use={})
            await recover(world.deps)
            world.snapshots.close()
            assert not any(world.held().values()), (name, level, world.held())
            world.state.close()
            if worked:
                break
        else:
            raise AssertionError(f"{name} never worked")

    async def run(self) -> None:
        name = f"{self.registry}/x:1"

        async def repairing(world: World) -> None:
            victim = world.deps.store.get(name).layers[0]
            path = world.snapshots.layer(victim.chain) / "a"
            path.write_bytes(b"x" * path.stat().st_size)
            found = await check(world.deps, repair=True, snapshots=lambda: {"box"}, progress=quiet)
            if not all(problem.repaired for problem in found.problems):
                path.write_bytes(b"1" * path.stat().st_size)
                model = path.with_name("b").stat()
                os.utime(path, ns=(model.st_mtime_ns, model.st_mtime_ns))
                raise WherryError("; ".join(problem.detail for problem in found.problems))

        await self.verb("pull", lambda world: pull(world.deps, name, progress=quiet), base=False)
        await self.verb("load", lambda world: load(world.deps, chunks(self.archive), progress=quiet), base=False)
        plain = tar({"i": os.urandom(600_000)})
        await self.verb("import", lambda world: import_(world.deps, chunks(plain), progress=quiet), base=False)

        async def committing(world: World) -> None:
            await commit(world.deps, "box", image_id=world.deps.store.get(name).id, config=ContainerConfig())

        async def converting(world: World) -> None:
            await convert(world.deps, name, "y", compression="zstd", progress=quiet)

        async def collecting(world: World) -> None:
            await collect_all(world.deps)
            await check(world.deps, quick=True, snapshots=lambda: {"box"}, progress=quiet)

        await self.verb("commit", committing, base=True)
        await self.verb("convert", converting, base=True)
        await self.verb("check", repairing, base=True)
        await self.verb("collect", collecting, base=True)


async def main() -> None:
    registry, scratch = sys.argv[1], Path(sys.argv[2])
    root, other = scratch / "small", scratch / "other"
    for path in (root, other):
        path.mkdir()
    roomy = World(other, OverlaySnapshotter(other))
    await pull(roomy.deps, f"{registry}/x:1", progress=quiet)
    archive = b"".join([chunk async for chunk in save(roomy.deps, [f"{registry}/x:1"])])
    roomy.snapshots.close()
    mount.make_rprivate("/")
    mount.mount(Mount(type="tmpfs", source="tmpfs", options=(f"size={SIZE}",)), root)
    trial = Trial(root, registry, archive)
    await trial.run()
    mount.umount(root)
    print(json.dumps(trial.refusals))


if __name__ == "__main__":
    asyncio.run(main())
