"""The one worker that clients are told of: this machine, and what the engine does beyond the classic one.

The label `snapshotter` is what clients take for "containerd image store": several platforms in one image, attestations,
archives by -o, caches, and pushing by the daemon. All of that is here.
"""

import functools
import os
import platform as machine
from pathlib import Path

from wherry import __version__
from wherry.builder.deps import Deps
from wherry.buildkit import bk_pb2 as pb
from wherry.spec.image import Platform, candidates, host_platform, normalize

PACKAGE = "github.com/moby/buildkit"  # by which clients know the protocol
VERSION = "v0.23.2"  # of BuildKit whose services these are; clients compare versions for warnings only
LABEL = "org.mobyproject.buildkit.worker."
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_QEMU = {
    "qemu-aarch64": "arm64",
    "qemu-arm": "arm",
    "qemu-ppc64le": "ppc64le",
    "qemu-s390x": "s390x",
    "qemu-riscv64": "riscv64",
    "qemu-mips64el": "mips64le",
    "qemu-loongarch64": "loong64",
    "qemu-x86_64": "amd64",
    "qemu-i386": "386",
}


def version() -> pb.Version:
    return pb.Version(package=PACKAGE, version=VERSION, revision=f"wherry-{__version__}", dockerfile_version="1.18.0")


def worker(deps: Deps) -> pb.Worker:
    labels = {
        LABEL + "executor": "oci",
        LABEL + "hostname": machine.node(),
        LABEL + "network": "bridge",
        LABEL + "snapshotter": deps.snapshots.name,
        LABEL + "selinux.enabled": "false",
    }
    if gateway := deps.networks.bridge_gateway:
        labels[LABEL + "moby.host-gateway-ip"] = gateway
    platforms = [_platform(each) for each in runnable()]
    return pb.Worker(id="moby-worker", labels=labels, platforms=platforms, version=version())


def _platform(each: Platform) -> pb.Platform:
    return pb.Platform(architecture=each.architecture, os=each.os, variant=each.variant)


def runnable() -> list[Platform]:
    """What this machine runs, its own first: by itself, and by interpreters that binfmt_misc knows."""
    names = tuple(sorted(os.listdir(_BINFMT))) if _BINFMT.is_dir() else ()
    return list(_runnable(names))


@functools.cache
def _runnable(interpreters: tuple[str, ...]) -> tuple[Platform, ...]:
    own = candidates(host_platform())
    foreign = [normalize(Platform(os="linux", architecture=_QEMU[name])) for name in interpreters if name in _QEMU]
    return tuple({str(each): each for each in [host_platform(), *own, *foreign]}.values())
