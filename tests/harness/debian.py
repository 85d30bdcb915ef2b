"""A Debian image of some hundred MB in several layers, made by debootstrap, with every kind of file a layer can hold.

Made once and kept in .cache/debian: `flat.tar` is the tree as it must look in a container, `layers/N.tar` are what it
is made of; the last layer also takes things away that are in the ones below.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .engine import REPOSITORY
from .images import PATH_ENV, Image

CACHE = REPOSITORY / ".cache" / "debian"
TAR = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", "--format=posix"]
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep


def host_mirror() -> str:
    """Where this machine's apt gets Debian from; "" when it does not say."""
    for file in [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("debian*")]:
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] in (["URIs:"], ["deb"]):
                found = next((word for word in words[1:] if word.startswith("http") and "security" not in word), "")
                if found:
                    return found.rstrip("/")
    return ""


def suite() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    known = release.get("ID", "").strip('"') == "debian"
    return release.get("VERSION_CODENAME", "bookworm").strip('"') if known else "bookworm"


def debian(tag: str) -> Image:
    """The image; takes half a minute the first time."""
    if not (CACHE / "flat.tar").exists():
        _make()
    layers = [path.read_bytes() for path in sorted((CACHE / "layers").iterdir())]
    config = {"Cmd": ["bash"], "Env": [PATH_ENV]}
    return Image(tags=[tag], layers=layers, config=config)


def _make() -> None:
    shutil.rmtree(CACHE, ignore_errors=True)
    (CACHE / "layers").mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="wherry-debian-", dir="/tmp") as name:
        root = Path(name) / "root"
        # In a mount and PID namespace of its own: what debootstrap mounts goes with it.
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        done = subprocess.run(
            [*own, "debootstrap", "--variant=minbase", suite(), str(root), *filter(None, [host_mirror()])],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"debootstrap failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        for path in (root / "var/cache/apt/archives").glob("*.deb"):
            path.unlink()
        _pack("0", root, ["--exclude=./usr/share", "--exclude=./var", "."])
        _pack("1", root, ["--no-recursion", "./usr", "--recursion", "./usr/share"])
        _pack("2", root, ["./var"])
        _change(root)
        whiteouts = Path(name) / "whiteouts"
        (whiteouts / "usr/share").mkdir(parents=True)
        (whiteouts / "usr/share/.wh.doc").touch()
        (whiteouts / "var/lib/dpkg/info/").mkdir(parents=True)
        # Parents of whiteouts carry the attributes that the tree has: a layer's directory entry sets them.
        for folder in ("usr", "usr/share", "var", "var/lib", "var/lib/dpkg", "var/lib/dpkg/info"):
            shutil.copystat(root / folder, whiteouts / folder)
        members = ["--no-recursion", "./usr", "./usr/share", "--recursion", "-C", str(root), "./opt"]
        subprocess.run(
            [
                *TAR,
                "-C",
                str(whiteouts),
                "-cf",
                str(CACHE / "layers/3.tar"),
                "./usr/share/.wh.doc",
                "-C",
                str(root),
                *members,
            ],
            check=True,
        )
        subprocess.run([*TAR, "-C", str(root), "-cf", str(CACHE / "flat.part"), "."], check=True)
    os.replace(CACHE / "flat.part", CACHE / "flat.tar")


def _pack(name: str, root: Path, members: list[str]) -> None:
    subprocess.run([*TAR, "-C", str(root), "-cf", str(CACHE / f"layers/{name}.tar"), *members], check=True)


def _change(root: Path) -> None:
    """What the last layer does to the tree."""
    shutil.rmtree(root / "usr/share/doc")
    kinds = root / "opt/kinds"
    kinds.mkdir(mode=0o2750)
    (kinds / "plain").write_text("plain\n")
    os.chown(kinds / "plain", 1234, 2345)
    os.link(kinds / "plain", kinds / "hardlink")
    (kinds / "symlink").symlink_to("/etc/../etc/hostname")
    (kinds / "dangling").symlink_to("nowhere")
    os.mknod(kinds / "null", 0o20666, os.makedev(1, 3))
    os.mkfifo(kinds / "fifo", 0o640)
    (kinds / "setuid").write_bytes(b"\x7fELF")
    (kinds / "setuid").chmod(0o4755)
    (kinds / "marked").write_text("x")
    os.setxattr(kinds / "marked", "user.colour", b"blue\0with a zero")
    (kinds / "capable").write_text("x")
    os.setxattr(kinds / "capable", "security.capability", CAPABILITY)
    with (kinds / "sparse").open("wb") as sparse:
        sparse.seek(50_000_000)
        sparse.write(b"end")
    (kinds / ("n" * 200)).write_text("long name\n")
    (kinds / "naïve ☃").write_text("not ASCII\n")
    (kinds / "old").write_text("x")
    os.utime(kinds / "old", ns=(1, 123_456_789_123_456_789))
    (kinds / "empty").mkdir()
    deep = kinds / "/".join(["deeper"] * 40)
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("bottom\n")
