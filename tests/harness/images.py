"""Images for tests, made on the spot from busybox-static and from trees written here; nothing is downloaded.

`Layer` is an uncompressed tar; `Image` a stack of them with a config. `docker_archive` writes what `docker load` reads,
`oci_layout` what skopeo pushes.
"""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CREATED = "2024-05-06T07:08:09.123456789Z"
PATH_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MTIME = 1_700_000_000

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tar member."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = MTIME
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, **kwargs: object) -> Entry:
    return Entry(name=name, type=tarfile.DIRTYPE, **{"mode": 0o755, **kwargs})  # type: ignore[arg-type]


def symlink(name: str, target: str) -> Entry:
    return Entry(name=name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def tar(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.mtime = entry.type, entry.mode, entry.mtime
            info.uid, info.gid, info.linkname = entry.uid, entry.gid, entry.link
            info.devmajor, info.devminor = entry.device
            info.size = len(entry.data)
            info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
            archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Image:
    tags: Sequence[str]
    layers: Sequence[bytes]  # uncompressed tars, base first
    config: Mapping[str, object] = field(default_factory=dict)  # as docker's ContainerConfig
    architecture: str = "amd64"
    history: Sequence[str] = ()  # created_by, one per layer; made up when empty

    def config_document(self) -> bytes:
        history = self.history or [f"layer {number}" for number, _ in enumerate(self.layers)]
        return json.dumps(
            {
                "architecture": self.architecture,
                "os": "linux",
                "created": CREATED,
                "config": {"Env": [PATH_ENV], "Cmd": ["sh"], **self.config},
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
                "history": [{"created": CREATED, "created_by": step} for step in history],
            }
        ).encode()

    @property
    def id(self) -> str:
        return digest(self.config_document())


def docker_archive(images: Sequence[Image]) -> bytes:
    """The layout of `docker save` before version 25: a folder per layer, manifest.json."""
    files: dict[str, bytes] = {}
    manifest = []
    for image in images:
        config = image.config_document()
        name = digest(config)[7:] + ".json"
        files[name] = config
        paths = []
        for layer in image.layers:
            path = digest(layer)[7:] + "/layer.tar"
            files[path] = layer
            paths.append(path)
        manifest.append({"Config": name, "RepoTags": list(image.tags), "Layers": paths})
    files["manifest.json"] = json.dumps(manifest).encode()
    return tar([Entry(name=name, data=data) for name, data in files.items()])


def write_blob(root: Path, data: bytes) -> dict[str, object]:
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest(data)[7:]).write_bytes(data)
    return {"digest": digest(data), "size": len(data)}


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


COMPRESSIONS: Mapping[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("+gzip", lambda data: gzip.compress(data, 1, mtime=0)),
    "zstd": ("+zstd", zstd),
    "plain": ("", bytes),
}


def oci_manifest(root: Path, image: Image, *, compression: str = "gzip") -> dict[str, object]:
    """Write an image's blobs below `root`; returns the descriptor of its manifest."""
    suffix, compress = COMPRESSIONS[compression]
    layers = [{"mediaType": OCI_LAYER + suffix, **write_blob(root, compress(layer))} for layer in image.layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, **write_blob(root, image.config_document())},
        "layers": layers,
    }
    return {
        "mediaType": OCI_MANIFEST,
        **write_blob(root, json.dumps(manifest).encode()),
        "platform": {"architecture": image.architecture, "os": "linux"},
    }


def oci_layout(root: Path, images: Sequence[Image], *, compression: str = "gzip", nested: bool = False) -> str:
    """An OCI layout of `images` under `root`, as one index; returns the digest of what a puller would be given.

    With `nested` the images are the platforms of *one* image: index.json names an index, which names them.
    """
    root.mkdir(parents=True, exist_ok=True)
    descriptors = [oci_manifest(root, image, compression=compression) for image in images]
    if nested:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
        descriptors = [{"mediaType": OCI_INDEX, **write_blob(root, json.dumps(index).encode())}]
    (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": descriptors}))
    return str(descriptors[0]["digest"])


# -- the images every test may count on ------------------------------------------------------------------------------


@cache
def busybox_layer() -> bytes:
    """A root file system of one static binary."""
    binary = shutil.which("busybox")
    assert binary, "busybox-static is not installed"
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    passwd += "alice:x:1000:1000:Alice:/home/alice:/bin/sh\n"
    group = "root:x:0:\nnogroup:x:65534:\nalice:x:1000:\nstaff:x:50:alice\ndisk:x:6:\n"
    entries = [directory(name) for name in ("bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "var")]
    entries += [
        directory("root", mode=0o700),
        directory("tmp", mode=0o1777),
        directory("home/alice", uid=1000, gid=1000),
        Entry(name="etc/passwd", data=passwd.encode()),
        Entry(name="etc/group", data=group.encode()),
        Entry(name="bin/busybox", data=Path(binary).read_bytes(), mode=0o755),
    ]
    entries += [symlink(f"bin/{name}", "busybox") for name in applets if name != "busybox"]
    return tar(entries)


BUSYBOX = "busybox:latest"


@cache
def busybox() -> Image:
    return Image(tags=[BUSYBOX], layers=[busybox_layer()])


@cache
def layered() -> Image:
    """Three layers: every kind of file, then whiteouts of several kinds over them."""
    base = tar(
        [
            directory("data", mode=0o750, uid=7, gid=8),
            Entry(name="data/kept", data=b"kept\n", mode=0o640, uid=7, gid=8),
            Entry(name="data/gone", data=b"gone\n"),
            Entry(name="data/hard", data=b"linked\n"),
            Entry(name="data/hard2", type=tarfile.LNKTYPE, link="data/hard"),
            symlink("data/soft", "../etc/passwd"),
            Entry(name="data/setuid", data=b"#!/bin/sh\n", mode=0o4755),
            Entry(name="data/device", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            Entry(name="data/fifo", type=tarfile.FIFOTYPE, mode=0o600),
            Entry(name="data/marked", data=b"x\n", xattrs={"user.colour": "blue"}),
            directory("opaque"),
            Entry(name="opaque/below", data=b"below\n"),
            directory("becomes-file"),
            Entry(name="becomes-file/x", data=b"x\n"),
            Entry(name="becomes-dir", data=b"file\n"),
            Entry(name="data/" + "long/" * 30 + "name", data=b"deep\n"),
        ]
    )
    over = tar(
        [
            directory("data", mode=0o750, uid=7, gid=8),
            Entry(name="data/.wh.gone"),
            directory("opaque"),
            Entry(name="opaque/.wh..wh..opq"),
            Entry(name="opaque/above", data=b"above\n"),
            Entry(name="becomes-file", data=b"now a file\n"),
            directory("becomes-dir"),
            Entry(name="becomes-dir/y", data=b"y\n"),
        ]
    )
    return Image(tags=["layered:latest"], layers=[busybox_layer(), base, over])


@cache
def configured() -> Image:
    """An image that sets everything a container takes from it."""
    tree = tar(
        [
            directory("vol", uid=1000, gid=1000, mode=0o770),
            Entry(name="vol/seed", data=b"from the image\n", uid=1000, gid=1000, mode=0o600),
            symlink("vol/link", "seed"),
            directory("work"),
        ]
    )
    config = {
        "Env": [PATH_ENV, "COLOUR=blue", "EMPTY="],
        "Entrypoint": ["echo", "entry"],
        "Cmd": ["default", "args"],
        "WorkingDir": "/work",
        "User": "alice",
        "Volumes": {"/vol": {}},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Labels": {"org.example.kind": "test", "empty": ""},
        "StopSignal": "SIGUSR1",
    }
    return Image(
        tags=["configured:latest", "example.test/some/configured:1.0"], layers=[busybox_layer(), tree], config=config
    )
