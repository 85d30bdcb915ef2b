"""Cache keys: what a step does, and the identities of what it does it to. Pure.

A key says nothing of when, where or by whom: limits, proxies, names of networks and times are left out, files count by
their content. Two steps with one key have one result.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wherry.builder.graph import Copy, Exec, Files, FileStep, Limits, Op, Remove, Vertex
from wherry.spec.image import Platform

VERSION = "1"  # of keys: results of an older one are not found any more


def step_key(vertex: Vertex, identities: Sequence[str]) -> str:
    """`sha256:…`. `identities` are of what the step reads: its inputs, in their order, and the files it copies."""
    platform = vertex.platform
    parts = [
        VERSION,
        type(vertex.op).__name__,
        repr(_essence(vertex.op)),
        _platform(platform) if isinstance(vertex.op, Exec) else "",
        *identities,
    ]
    return _digest(parts)


def selection_key(identity: str, action: Copy) -> str:
    """What the checksum of the files `action` takes from the tree `identity` is remembered by."""
    taken = replace(action, target="", owner=None, mode="", timestamp=-1)
    return _digest([VERSION, identity, repr(taken)])


def ingredients(
    vertex: Vertex, parents: Mapping[str, str], files: Mapping[str, str], mounts: Mapping[str, str]
) -> dict[str, str]:
    """What the step is made of, in the words of `records/reasons.py`."""
    found = {"command": vertex.said or vertex.name}
    found |= {f"ARG {name}": value for name, value in vertex.args.items()}
    found |= parents
    found |= {f"file {path}": checksum for path, checksum in files.items()}
    found |= {f"mount {target}": identity for target, identity in mounts.items()}
    if isinstance(vertex.op, Exec):
        for entry in vertex.op.env:
            name, _, value = entry.partition("=")
            if name not in vertex.args:
                found[f"ENV {name}"] = value
        found |= {"user": vertex.op.user or "root", "working directory": vertex.op.cwd, "network": vertex.op.network}
        if len(vertex.op.args) > 1:
            found["shell"] = " ".join(vertex.op.args[:-1])
    if vertex.ignore_cache:
        found["no-cache"] = ""
    return {as_text(name): as_text(value) for name, value in found.items()}


def as_text(text: str) -> str:
    """What a file or a variable holds, as text that can be written down, whatever its bytes are."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _essence(op: Op) -> Op:
    match op:
        case Exec():
            return replace(op, limits=Limits(), proxies=(), on="")
        case Files():
            return replace(op, steps=tuple(_timeless(step) for step in op.steps))
        case _:
            return op


def _timeless(step: FileStep) -> FileStep:
    match step.action:
        case Remove():
            return step
        case action:
            return replace(step, action=replace(action, timestamp=-1))


def _platform(platform: Platform) -> str:
    return "/".join((platform.os, platform.architecture, platform.variant))


def _digest(parts: Sequence[str]) -> str:
    """Of several texts, which may hold anything."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return f"sha256:{digest.hexdigest()}"
