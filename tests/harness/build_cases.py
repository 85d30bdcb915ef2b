"""Builds with expected results: a folder for each, recorded with the yardstick, played through every door.

    tests/compat/build/cases/<name>/
        Dockerfile              and Dockerfile.dockerignore, where that is the case
        args                    options of `docker build`, one a line; {context} and {secret} stand for paths
        context/                the build context; without it the one of `write_context`
        expected.json           source: what it was recorded with, or "documentation"
                                config, history, files, output | error, excerpt

`scripts/record-build-cases` writes expected.json; those of the documentation are written by hand and stay.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import images
from .box import Box
from .engine import REPOSITORY, Result

CASES = REPOSITORY / "tests/compat/build/cases"
DOCUMENTATION = "documentation"  # in place of the recording engine
SECRET = b"the secret\n"
SECRET_VARIABLE = {"CASE_SECRET": "from the environment\n"}
WEB_PORT, GIT_PORT = 8099, 8098  # on the loopback of the engine's box
MTIME = 1_600_000_000  # of every file of a context
SHOWN = 200  # bytes of a file that are written out; of a longer one the checksum

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

CONFIG = (
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Healthcheck", "Volumes", "WorkingDir"),
    *("OnBuild", "Labels", "StopSignal", "Shell"),
)
Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def dockerfile(self) -> Path:
        return self.folder / "Dockerfile"

    @property
    def expected(self) -> Document:
        document: Document = json.loads((self.folder / "expected.json").read_text())
        return document

    def context(self, common: Path) -> Path:
        own = self.folder / "context"
        return own if own.exists() else common

    def args(self, common: Path, secret: Path) -> list[str]:
        file = self.folder / "args"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.format(context=self.context(common), secret=secret) for line in lines]


def all_cases() -> list[Case]:
    return [Case(folder=path.parent) for path in sorted(CASES.glob("*/Dockerfile"))]


# -- what the cases take from ------------------------------------------------------------------------------------------


def archive_members() -> bytes:
    """A tar with owners, modes, links and an extended attribute."""
    return images.tar(
        [
            images.directory("sub", mode=0o750, uid=1000, gid=50),
            images.Entry(name="file", data=b"packed\n", mode=0o640, uid=12, gid=34),
            images.Entry(name="sub/inner", data=b"inner\n", mode=0o4755, uid=1000, gid=50),
            images.symlink("sub/link", "../file"),
            images.Entry(name="sub/hard", type=tarfile.LNKTYPE, link="file", mode=0o640, uid=12, gid=34),
            images.Entry(name="marked", data=b"x\n", xattrs={"user.colour": "blue"}),
        ]
    )


def write_context(root: Path) -> None:
    """The build context of cases that bring none: every kind of file that a client can send."""
    import bz2
    import gzip
    import lzma

    packed = archive_members()
    files: dict[str, tuple[bytes, int]] = {
        "a.txt": (b"a\n", 0o644),
        "b.txt": (b"b\n", 0o664),
        "run.sh": (b"#!/bin/sh\necho run\n", 0o755),
        "private": (b"private\n", 0o600),
        "setuid": (b"setuid\n", 0o4755),
        ".hidden": (b"hidden\n", 0o644),
        "with space.txt": (b"space\n", 0o644),
        "brackets[1].txt": (b"brackets\n", 0o644),
        "x1.c": (b"1\n", 0o644),
        "x2.c": (b"2\n", 0o644),
        "y.h": (b"h\n", 0o644),
        "dir/one": (b"one\n", 0o644),
        "dir/two.md": (b"two\n", 0o640),
        "dir/sub/three": (b"three\n", 0o644),
        "links/file": (b"file\n", 0o644),
        "tree.tar": (packed, 0o644),
        "tree.tar.gz": (gzip.compress(packed, mtime=0), 0o644),
        "tree.tar.bz2": (bz2.compress(packed), 0o644),
        "tree.tar.xz": (lzma.compress(packed), 0o644),
        "tree.tar.zst": (images.zstd(packed), 0o644),
        "plain.gz": (gzip.compress(b"only a file\n", mtime=0), 0o644),
        "notes.zip": (b"PK\x05\x06" + bytes(18), 0o644),
        "archives/inner.tar": (packed, 0o644),
    }
    for name, (data, mode) in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
    (root / "dir").chmod(0o755)
    (root / "dir/sub").chmod(0o750)
    (root / "empty").mkdir()
    (root / "link").symlink_to("a.txt")
    (root / "links/up").symlink_to("../a.txt")
    (root / "links/dangling").symlink_to("nowhere")
    (root / "links/absolute").symlink_to("/etc/passwd")
    for folder, names, others in os.walk(root, topdown=False):
        for name in [*others, *names, "."]:
            os.utime(Path(folder) / name, (MTIME, MTIME), follow_symlinks=False)


@functools.cache
def base_images() -> bytes:
    """What the cases build on, for `docker load`."""
    triggers = {"OnBuild": ["RUN echo triggered > /triggered", "COPY a.txt /from-child", "LABEL trigger=ran"]}
    on_build = images.Image(tags=["triggers:latest"], layers=[images.busybox_layer()], config=triggers)
    return images.docker_archive([images.busybox(), images.layered(), images.configured(), on_build])


@contextlib.contextmanager
def servers(box: Box, root: Path) -> Iterator[None]:
    """A web server and a git daemon on the loopback of the box, for what `ADD` fetches."""
    web = root / "served/web"
    web.mkdir(parents=True)
    (web / "file.txt").write_bytes(b"from the web\n")
    (web / "tree.tar.gz").write_bytes(images.COMPRESSIONS["gzip"][1](archive_members()))
    for file in web.iterdir():
        os.utime(file, (MTIME, MTIME))
    _make_repository(root / "served/repo.git", root / "work tree")
    started = [
        box.spawn(
            ["python3", "-m", "http.server", str(WEB_PORT), "--bind", "127.0.0.1", "--directory", str(web.parent)],
            log=root / "web.log",
        ),
        box.spawn(
            [
                *("git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={GIT_PORT}"),
                *(f"--base-path={web.parent}", str(web.parent)),
            ],
            log=root / "git.log",
        ),
    ]
    try:
        _wait_for_ports(box, WEB_PORT, GIT_PORT)
        yield
    finally:
        for pid, words in box.processes().items():
            if str(web.parent) in words:
                box.kill(pid)
        for process in started:
            process.wait(30)


def _make_repository(bare: Path, tree: Path) -> None:
    """Two branches; the same commits every time."""
    who = {"NAME": "Some One", "EMAIL": "one@example.test", "DATE": f"{MTIME} +0000"}
    env = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(tree.parent)}
    env |= {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}

    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(tree), *args], env=env, check=True, capture_output=True)

    (tree / "folder").mkdir(parents=True)
    (tree / "README").write_text("the main branch\n")
    (tree / "folder/tool").write_text("#!/bin/sh\n")
    (tree / "folder/tool").chmod(0o755)
    (tree / "folder/link").symlink_to("../README")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    git("checkout", "-q", "-b", "other")
    (tree / "folder/other").write_text("the other branch\n")
    git("add", ".")
    git("commit", "-q", "-m", "second")
    git("checkout", "-q", "main")
    git("clone", "-q", "--bare", ".", str(bare))
    shutil.rmtree(tree)


def _wait_for_ports(box: Box, *ports: int) -> None:
    until = time.monotonic() + 30
    while True:
        table = Path(f"/proc/{box.holder}/net/tcp").read_text()
        if all(f":{port:04X} 00000000:0000 0A" in table for port in ports):
            return
        assert time.monotonic() < until, f"nothing listens on {ports}"
        time.sleep(0.05)


# -- what came out -----------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A file of an image; hard links share one."""

    kind: str  # the letter of `ls -l`, "f" for a file
    mode: int
    owner: str
    content: str  # of a file; where a link points; a device's numbers
    xattrs: Mapping[str, str]
    names: list[str] = field(default_factory=list)


Files = dict[str, Node]
KINDS = {
    tarfile.REGTYPE: "f",
    tarfile.DIRTYPE: "d",
    tarfile.SYMTYPE: "l",
    tarfile.CHRTYPE: "c",
    tarfile.BLKTYPE: "b",
    tarfile.FIFOTYPE: "p",
}


def content_of(data: bytes) -> str:
    """The text itself when it is short, else size and checksum; compressed bytes differ from library to library."""
    if data.startswith(COMPRESSED):
        return "compressed"
    with contextlib.suppress(UnicodeDecodeError):
        if len(data) <= SHOWN:
            return json.dumps(data.decode())
    return f"{len(data)} bytes sha256:{hashlib.sha256(data).hexdigest()}"


def apply_layer(files: Files, layer: bytes) -> None:
    """Lay a layer's tar over `files`."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        members = [(member, member.name.removeprefix("./").strip("/")) for member in archive]
        for _, path in members:
            parent, _, name = path.rpartition("/")
            if name == ".wh..wh..opq":
                _remove_below(files, parent)
            elif name.startswith(".wh."):
                gone = f"{parent}/{name[4:]}".strip("/")
                files.pop(gone, None)
                _remove_below(files, gone)
        for member, path in members:
            if path and not path.rpartition("/")[2].startswith(".wh."):
                _add(files, archive, member, path)


def _remove_below(files: Files, folder: str) -> None:
    for path in [path for path in files if path.startswith(folder + "/")]:
        del files[path]


def _add(files: Files, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    if member.type == tarfile.LNKTYPE:
        files[path] = files[member.linkname.removeprefix("./").strip("/")]
        return
    kind = KINDS[member.type]
    if kind != "d":
        _remove_below(files, path)
    content = ""
    if kind == "f":
        reader = archive.extractfile(member)
        content = content_of(reader.read()) if reader else ""
    elif kind == "l":
        content = f"-> {member.linkname}"
    elif kind in "cb":
        content = f"{member.devmajor},{member.devminor}"
    prefix = "SCHILY.xattr."
    xattrs = {key.removeprefix(prefix): text for key, text in member.pax_headers.items() if key.startswith(prefix)}
    xattrs = {key: text for key, text in xattrs.items() if not key.startswith("user.")}  # dockerd does not save those
    mode = 0o777 if kind == "l" else member.mode & 0o7777
    files[path] = Node(kind=kind, mode=mode, owner=f"{member.uid}:{member.gid}", content=content, xattrs=xattrs)


def lines_of(files: Files) -> dict[str, str]:
    """Path to a line that says everything about the file but its times."""
    linked: dict[int, list[str]] = {}
    for path, node in files.items():
        linked.setdefault(id(node), []).append(path)
    lines = {}
    for path in sorted(files):
        node = files[path]
        words = [node.kind, f"{node.mode:04o}", node.owner, node.content]
        words += [f"{name}={value}" for name, value in sorted(node.xattrs.items())]
        names = sorted(linked[id(node)])
        words += [f"= /{names[0]}"] if names[0] != path else []
        lines["/" + path] = " ".join(word for word in words if word)
    return lines


@functools.cache
def _base_lines(diff_ids: tuple[str, ...]) -> dict[str, str]:
    files: Files = {}
    layers = {images.digest(layer): layer for layer in _base_layers()}
    for diff_id in diff_ids:
        apply_layer(files, layers[diff_id])
    return lines_of(files)


@functools.cache
def _base_layers() -> tuple[bytes, ...]:
    found = [images.busybox(), images.layered(), images.configured()]
    return tuple({layer: None for image in found for layer in image.layers})


def describe(archive: bytes) -> Document:
    """What counts of an image: config and history above its base, and how its files differ from the base's.

    `archive` is what `docker save` gives for it.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as saved:

        def read(name: str) -> bytes:
            reader = saved.extractfile(name)
            assert reader is not None, name
            return reader.read()

        manifest = json.loads(read("manifest.json"))[0]
        config = json.loads(read(manifest["Config"]))
        known = {images.digest(layer) for layer in _base_layers()}
        diff_ids = config["rootfs"].get("diff_ids") or []
        count = next((n for n, diff_id in enumerate(diff_ids) if diff_id not in known), len(diff_ids))
        files: Files = {}
        for layer in manifest["Layers"] or []:
            apply_layer(files, read(layer))
    before, after = _base_lines(tuple(diff_ids[:count])), lines_of(files)
    changed = {path: line for path, line in after.items() if before.get(path) != line}
    changed |= {path: "gone" for path in before if path not in after}
    return {
        "config": {name: config["config"][name] for name in CONFIG if config["config"].get(name)},
        "history": history_of(config, count),
        "files": dict(sorted(changed.items())),
    }


def history_of(config: Document, base_layers: int) -> list[str]:
    """`created_by` above the base's; "(empty)" in front where a step made no layer."""
    history = config.get("history") or []
    seen = start = 0
    while seen < base_layers:
        seen += not history[start].get("empty_layer")
        start += 1
    marks = {True: "(empty) ", False: ""}
    return [marks[bool(entry.get("empty_layer"))] + entry["created_by"] for entry in history[start:]]


def said(result: Result) -> list[str]:
    """What steps printed after "say: ", from the plain progress; sorted, since two streams have no order."""
    return sorted(re.findall(r"^#\d+ [\d.]+ (say: .*)$", result.err, re.MULTILINE))


def failure(text: str) -> Document:
    """The message, and the line of the Dockerfile that the client points at, of a failed buildx or `wherry build`.

    Names that the engine made up are "…".
    """
    message = text.partition("ERROR: failed to solve: ")[2] or text.rpartition("ERROR: ")[2]
    message = re.sub(r"[0-9a-f-]{36}::[0-9a-z]{25}|/\S*/merged(?=/)|/\S*/buildkit-mount\d+(?=/)", "…", message)
    text = re.sub(r"^(Dockerfile:\d+):\d+$", r"\1", text, flags=re.MULTILINE)  # ours knows the column too
    excerpt = re.findall(r"^(Dockerfile:\d+|.*\| >>> .*)$", text, re.MULTILINE)
    return {"error": message.strip(), "excerpt": [line.strip() for line in excerpt]}


def differences(expected: Document, found: Document) -> list[str]:
    """Readable lines; none when they are the same in every part that `expected` has.

    A place in the Dockerfile may be told where the recording engine knew none.
    """
    lines: list[str] = []
    for part in expected:
        if part not in ("source", "note") and (part != "excerpt" or expected[part]):
            lines += _compare(part, expected[part], found.get(part))
    return lines


def _compare(name: str, expected: object, found: object) -> Sequence[str]:
    if expected == found or (name == "error" and _holds(str(expected), str(found))):
        return []
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted({*expected, *found})
        return [line for key in keys for line in _compare(f"{name}.{key}", expected.get(key), found.get(key))]
    return [f"{name}:", f"  expected {json.dumps(expected)}", f"  found    {json.dumps(found)}"]


def _holds(expected: str, found: str) -> bool:
    """Whether the words are there, "…" standing for anything; what to do about it may follow."""
    return re.search(".*".join(re.escape(part) for part in expected.split("…")), found) is not None
