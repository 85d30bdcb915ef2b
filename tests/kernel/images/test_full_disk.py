"""The disk is full, at many levels, in the middle of everything that writes."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from imagekit import full_disk
from imagekit.making import make
from imagekit.registry import FakeRegistry

pytestmark = pytest.mark.kernel

MADE = make([{"a": b"1" * 500_000, "b": os.urandom(500_000)}, {"c": os.urandom(600_000)}])


async def test_a_full_disk_is_told_leaves_nothing_and_all_works_when_there_is_room(
    tmp_path: Path, registry: FakeRegistry
):
    registry.add("x", "1", MADE)
    words = ("unshare", "-m", sys.executable, full_disk.__file__, registry.host, str(tmp_path))
    child = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, err.decode()[-4000:]
    refusals: dict[str, list[str]] = json.loads(out.splitlines()[-1])
    print(*sorted({message for messages in refusals.values() for message in messages}), sep="\n")
    assert refusals.keys() == {"pull", "load", "import", "commit", "convert", "check", "collect"}
    assert all(len(refusals[name]) >= 2 for name in ("pull", "load", "import", "commit", "convert"))
    assert refusals["check"]
    assert refusals["collect"] == []  # what makes room needs none
