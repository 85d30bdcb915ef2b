"""Run by test_propagation in a mount namespace of its own: one container that mounts something on a bind."""

import asyncio
import shutil
import sys
from pathlib import Path

from conftest import CGROUP_PARENT, World
from wherry.kernel import cgroup, mount
from wherry.runtime.shim_client import RuntimeSpec, Shims
from wherry.runtime.spec import SpecMount, bind_options


async def main(root: Path, base: Path, propagation: str, runtime: str) -> None:
    exec_root, source = root / "exec", root / "source"
    for each in (exec_root, source):
        each.mkdir()
        mount.mount(mount.Mount(type="tmpfs", source="tmpfs", options=("shared",)), each)
    (source / "sub").mkdir()
    before = mounts_but(source / "sub")
    shims = Shims(exec_root)
    await shims.start()
    world = World(shims=shims, root=exec_root, base=base)
    options = bind_options(read_only=False, propagation=propagation)
    bind = SpecMount(destination="/x", type="bind", source=str(source), options=options)
    script = "mount -t tmpfs mine /x/sub && echo mounted && read line"
    spec = world.spec(
        ["sh", "-c", script], RuntimeSpec(path=str(shutil.which(runtime))), host={"privileged": True}, mounts=[bind],
        open_stdin=True, stdin_once=True,
    )  # fmt: skip
    shim = await shims.create(spec, netns=None)
    reader, writer = await shim.attach(stdin=True, stdout=True, stderr=True)
    await shim.start()
    data = await reader.read(1000)
    print(data[8:].decode().strip())
    print(f"{source}/sub " in Path("/proc/self/mountinfo").read_text())
    writer.write_eof()
    await shim.exited
    writer.close()
    await shims.forget(shim.id)
    await shims.stop()
    cgroup.remove_empty(CGROUP_PARENT)
    print("clean" if mounts_but(source / "sub") == before else "dirty")


def mounts_but(place: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted(point for point in points if point != str(place))


asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
