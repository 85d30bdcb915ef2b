"""Pulls in a process of their own, to be killed."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

_PULL = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from imagekit.world import World
from wherry.images.transfer.pull import pull
from wherry.storage.overlay import OverlaySnapshotter

async def main():
    root = Path(sys.argv[2])
    world = World(root, OverlaySnapshotter(root))
    await pull(world.deps, sys.argv[3], progress=lambda message: print(message, flush=True))

asyncio.run(main())
"""


async def pulling(root: Path, name: str, *, listen: bool = False) -> Process:
    """Pull `name` into the stores below `root`; with `listen` each message is a line of its standard output."""
    words = (sys.executable, "-c", _PULL, str(Path(__file__).parents[1]), str(root), name)
    return await asyncio.create_subprocess_exec(*words, stdout=PIPE if listen else DEVNULL)
