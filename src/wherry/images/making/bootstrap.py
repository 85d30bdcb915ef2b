"""Bootstrap: a base image on a machine without a registry, from the distribution's own packages.

    busybox    one layer: the static busybox of this machine, with a link for each of its applets
    debian     two layers: `debootstrap --variant=minbase`, then what makes apt behave in containers

What a tool of the distribution does (debootstrap mounts and chroots) happens in mount and pid namespaces of its own,
which take everything with them when they end.
"""

import asyncio
import contextlib
import io
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from wherry.aio import finish, settle
from wherry.errors import Failed, InvalidParameter
from wherry.images.deps import Deps
from wherry.images.garbage import leased
from wherry.images.leases import Lease
from wherry.images.making.make import Out, add_image, add_layer, now
from wherry.images.progress import Progress
from wherry.images.record import Image, Layer
from wherry.reference import parse
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import History, host_platform
from wherry.storage.diff import write_tree
from wherry.storage.tree import remove_tree

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SUITE = "stable"
TIME = 3600  # seconds for debootstrap
TOOL_TIME = 30  # seconds for a program that only has to answer
KEPT_LINES = 20  # of a tool's output, shown when it fails


async def bootstrap(deps: Deps, name: str, *, progress: Progress) -> Image:
    """Make the base image `name` and tag it `name:latest`. Raises InvalidParameter for a name there is no recipe for,
    Failed naming the package when this machine lacks the tool.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise InvalidParameter(f"no recipe for a base image {name[:100]!r}: there are {' and '.join(RECIPES)}")
    async with deps.locks(("bootstrap", name)):
        scratch = deps.work / f"bootstrap-{name}-{os.urandom(4).hex()}"
        try:
            await settle(_make_directory, scratch)
            async with leased(deps, f"bootstrap {name}") as lease:
                image = await recipe(deps, lease, scratch, progress)
        finally:
            await settle(_discard, scratch)
    for tag in image.repo_tags:
        progress({"status": f"Status: made {tag}"})
    deps.announce("import", image, actor=image.id, name=image.id)
    return image


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, mode=0o755)
    path.chmod(0o755)  # debootstrap's _apt user has to get through


def _discard(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove_tree(path)


async def _tree_layer(deps: Deps, lease: Lease, root: Path) -> Layer:
    def write(out: Out) -> None:
        write_tree(root, out, include_root=True)

    return await add_layer(deps, lease, write, parent=None)


# --- busybox ----------------------------------------------------------------------------------------------------------

_USERS = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
    "nobody:x:65534:65534:nobody:/home:/bin/false\n"
)
_GROUPS = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n"
_FILES: Mapping[str, tuple[str, int]] = {
    "etc/passwd": (_USERS, 0o644),
    "etc/group": (_GROUPS, 0o644),
    "etc/shadow": ("root:*:::::::\nnobody:*:::::::\n", 0o640),
    "etc/nsswitch.conf": ("passwd: files\ngroup: files\nhosts: files dns\n", 0o644),
}
_DIRECTORIES: Mapping[str, int] = {
    "bin": 0o755,
    "sbin": 0o755,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "etc": 0o755,
    "dev": 0o755,
    "home": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "sys": 0o755,
    "tmp": 0o1777,
    "var": 0o755,
    "var/spool": 0o755,
    "var/tmp": 0o1777,
    "var/www": 0o755,
}


async def _busybox(deps: Deps, lease: Lease, scratch: Path, progress: Progress) -> Image:
    binary = _find_busybox()
    listed = await _output([os.fspath(binary), "--list-full"])
    applets = [line for line in listed.splitlines() if re.fullmatch(r"(usr/)?s?bin/[^/\s]+", line)]
    progress({"status": f"Taking {binary} with {len(applets)} applets", "id": "busybox"})
    root = scratch / "rootfs"
    await settle(build_busybox, root, binary, applets)
    layer = await _tree_layer(deps, lease, root)
    return await add_image(
        deps,
        lease,
        layers=[layer],
        config=ContainerConfig(env=[PATH], cmd=["sh"]),
        platform=host_platform(),
        history=[History(created=now(), created_by=f"wherry image bootstrap busybox ({binary})")],
        references=[parse("busybox:latest")],
    )


def _find_busybox() -> Path:
    """The static one; the package `busybox` is linked to a libc the image will not have."""
    for path in ("/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static"):
        if os.access(path, os.X_OK) and _is_static(Path(path)):
            return Path(path).resolve()
    raise Failed("there is no static busybox on this machine: apt-get install busybox-static")


def _is_static(path: Path) -> bool:
    """No program header of the ELF file names an interpreter."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head.startswith(b"\x7fELF"):
        return False
    wide, little = head[4] == 2, head[5] == 1

    def number(offset: int, size: int) -> int:
        return int.from_bytes(head[offset : offset + size], "little" if little else "big")

    start, step, count = (
        (number(32, 8), number(54, 2), number(56, 2)) if wide else (number(28, 4), number(42, 2), number(44, 2))
    )
    return all(number(start + index * step, 4) != 3 for index in range(count))  # PT_INTERP


def build_busybox(root: Path, binary: Path, applets: Sequence[str]) -> None:
    """The root file system (blocking). Every time is the binary's: the same package makes the same image."""
    root.mkdir(mode=0o755)
    for name, mode in _DIRECTORIES.items():
        (root / name).mkdir()
        (root / name).chmod(mode)
    for name, (text, mode) in _FILES.items():
        (root / name).write_text(text)
        (root / name).chmod(mode)
    shutil.copyfile(binary, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for applet in applets:
        if not os.path.lexists(root / applet):
            (root / applet).symlink_to("/bin/busybox")
    if not os.path.lexists(root / "bin/sh"):
        (root / "bin/sh").symlink_to("/bin/busybox")
    when = binary.stat().st_mtime_ns
    for directory, _, files in os.walk(root, topdown=False):
        for each in (*files, "."):
            os.utime(Path(directory) / each, ns=(when, when), follow_symlinks=False)


# --- debian -----------------------------------------------------------------------------------------------------------

# What the package manager keeps for the next time, and what belongs to the machine the files were made on.
_CACHES = (
    "var/lib/apt/lists",
    "var/cache/apt",
    "var/cache/ldconfig",
    "var/log",
    "tmp",
    "run",
    "dev",
)
_MACHINE_FILES = ("etc/hostname", "etc/resolv.conf", "etc/machine-id")

_APT: Mapping[str, str] = {
    "etc/apt/apt.conf.d/docker-clean": (
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb '
        '/var/cache/apt/*.bin || true"; };\n'
        'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
    ),
    "etc/apt/apt.conf.d/docker-gzip-indexes": 'Acquire::GzipIndexes "true";\n',
    "etc/apt/apt.conf.d/docker-no-languages": 'Acquire::Languages "none";\n',
    "etc/apt/apt.conf.d/docker-autoremove-suggests": 'Apt::AutoRemove::SuggestsImportant "false";\n',
    "etc/dpkg/dpkg.cfg.d/docker-apt-speedup": "force-unsafe-io\n",
    "usr/sbin/policy-rc.d": "#!/bin/sh\n# Installing a package starts no service in a container.\nexit 101\n",
}


async def _debian(deps: Deps, lease: Lease, scratch: Path, progress: Progress) -> Image:
    if shutil.which("debootstrap") is None:
        raise Failed("debootstrap is not installed on this machine: apt-get install debootstrap")
    if os.geteuid() != 0:
        raise Failed("debootstrap needs root")
    suite, mirror = find_suite(Path("/etc"))
    root = scratch / "rootfs"
    source = [mirror] if mirror else []
    command = ["debootstrap", "--variant=minbase", suite, os.fspath(root), *source]
    told = f"{suite} from {mirror}" if mirror else suite
    progress({"status": f"Running {' '.join(command[:2])} {told}", "id": "debian"})
    await _run_apart(command, lambda line: progress({"status": line, "id": "debian"}))
    await settle(trim_debian, root)
    progress({"status": "Packing", "id": "debian"})
    base = await _tree_layer(deps, lease, root)
    top = await add_layer(deps, lease, lambda out: out(apt_layer()), parent=base.chain)
    made = f"wherry image bootstrap debian ({' '.join([*command[:3], *source])})"
    return await add_image(
        deps,
        lease,
        layers=[base, top],
        config=ContainerConfig(env=[PATH], cmd=["bash"]),
        platform=host_platform(),
        history=[
            History(created=now(), created_by=made),
            History(created=now(), created_by="apt set up for containers"),
        ],
        references=[parse("debian:latest"), parse(f"debian:{suite}")],
    )


def find_suite(etc: Path) -> tuple[str, str]:
    """Suite and mirror of this machine when it is Debian's; "" is debootstrap's own mirror."""
    release = _assignments(etc / "os-release")
    if release.get("ID") != "debian":
        return DEFAULT_SUITE, ""
    suite = release.get("VERSION_CODENAME") or DEFAULT_SUITE
    return suite, _find_mirror(etc / "apt", suite) or ""


def _assignments(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines)
    return {name: value.strip("\"'") for name, equals, value in pairs if equals}


def _find_mirror(apt: Path, suite: str) -> str | None:
    """The first source apt would take packages of `suite` itself from, in either format."""
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text()
        except OSError:
            continue
        found = _from_stanzas(text, suite) if path.suffix == ".sources" else _from_lines(text, suite)
        if found:
            return found
    return None


def _from_lines(text: str, suite: str) -> str | None:
    for match in re.finditer(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s", text + "\n", re.MULTILINE):
        if match[2] == suite:
            return match[1]
    return None


def _from_stanzas(text: str, suite: str) -> str | None:
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {name.strip().lower(): value.split() for name, _, value in (line.partition(":") for line in lines)}
        if "deb" in fields.get("types", ()) and suite in fields.get("suites", ()) and fields.get("uris"):
            return fields["uris"][0]
    return None


def trim_debian(root: Path) -> None:
    """Leave out what a base image does not need and what tells of this machine (blocking)."""
    for name in _CACHES:
        for path in sorted((root / name).glob("*")):
            remove_tree(path)
    for name in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in _MACHINE_FILES:
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").touch(mode=0o444)
    (root / "run/lock").mkdir(parents=True, exist_ok=True)
    (root / "run/lock").chmod(0o1777)


def apt_layer() -> bytes:
    """The second layer: a tar of `_APT`, the same every time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in _APT.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            entry.mode = 0o755 if text.startswith("#!") else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


# --- other programs ---------------------------------------------------------------------------------------------------


async def _output(command: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(TOOL_TIME):
            out, _ = await process.communicate()
    finally:
        await finish(_stop(process))
    if process.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with status {process.returncode}")
    return out.decode(errors="replace")


async def _run_apart(command: Sequence[str], tell: Callable[[str], None]) -> None:
    """Run in mount and pid namespaces of its own, line by line to `tell`. Raises Failed with its last words."""
    wrapped = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--", *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *wrapped,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env={
                **_proxies(),
                "PATH": os.defpath + ":/usr/sbin:/sbin",
                "LC_ALL": "C",
                "DEBIAN_FRONTEND": "noninteractive",
            },
        )
    except FileNotFoundError as exc:
        raise Failed("unshare is not installed on this machine: apt-get install util-linux") from exc
    last: list[str] = []
    try:
        async with asyncio.timeout(TIME):
            assert process.stdout is not None
            async for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                last = [*last[-KEPT_LINES:], line]
                tell(line)
            status = await process.wait()
    except TimeoutError as exc:
        raise Failed(f"{command[0]} takes longer than {TIME} seconds and was stopped") from exc
    finally:
        await finish(_stop(process))
    if status != 0:
        raise Failed(f"{command[0]} failed with status {status}:\n" + "\n".join(last))


def _proxies() -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "no_proxy")
    return {name: os.environ[name] for name in (*names, *map(str.upper, names)) if name in os.environ}


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End what still runs; the pid namespace takes its children along."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


Recipe = Callable[[Deps, Lease, Path, Progress], Awaitable[Image]]
RECIPES: Mapping[str, Recipe] = {"busybox": _busybox, "debian": _debian}
