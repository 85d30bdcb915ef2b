"""From a Dockerfile to a tree, on a real kernel: what runs, what is found in the cache, what is left behind."""

import asyncio
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builderkit.site import load_busybox, open_site
from harness.descriptors import descriptors
from wherry.builder.graph import NetworkMode, ResolveMode
from wherry.builder.options import Export, Options
from wherry.builder.records.record import Status
from wherry.builder.run.program import ProgramFailed
from wherry.builder.solve.upkeep import PruneOptions
from wherry.errors import NotFound, WherryError
from wherry.images.upkeep.check import check

NO_NETWORK: dict[str, Any] = {"network": NetworkMode.NONE}


async def test_steps_see_the_files_before_them_and_leave_a_layer_each(either: Any) -> None:
    either.write(app__a_txt="one\n")
    done = await either.build(
        "FROM busybox\nWORKDIR /w\nCOPY app/ .\nRUN cat a.txt a.txt > twice && rm a.txt && mkdir -p /deep/er\n",
        **NO_NETWORK,
    )
    assert done.read("w/twice") == b"one\none\n"
    assert not done.has("w/a.txt")
    assert done.has("deep/er")
    assert len(done.tree.layers) == 4
    assert either.held() == {"snapshots": [], "shims": [], "steps": [], "scratch": [], "jobs": []}


async def test_the_same_again_runs_nothing_and_has_the_same_layers(either: Any) -> None:
    either.write(a_txt="one")
    dockerfile = "FROM busybox\nCOPY a.txt /a\nRUN date +%s%N > /dev/null; cp /a /b\n"
    first = await either.build(dockerfile, **NO_NETWORK)
    again = await either.build(dockerfile, **NO_NETWORK)
    assert len(first.ran) == 2
    assert again.ran == []
    assert again.tree.chain == first.tree.chain


async def test_without_the_cache_the_same_inputs_give_the_same_layers(either: Any) -> None:
    either.write(a_txt="one")
    dockerfile = "FROM busybox\nCOPY a.txt /a\nRUN cp /a /b && mkdir /d && ln -s b /d/link && touch /d/empty\n"
    first = await either.build(dockerfile, **NO_NETWORK)
    await asyncio.sleep(1.1)  # another second: times would differ
    again = await either.build(dockerfile, no_cache=True, **NO_NETWORK)
    assert len(again.ran) == 2
    assert again.tree == first.tree


async def test_what_a_step_wrote_has_the_time_of_the_newest_source(site: Any) -> None:
    site.write(a_txt="one")
    done = await site.build("FROM busybox\nCOPY a.txt /a\nRUN echo x > /b\n", **NO_NETWORK)
    assert done.stat("b").st_mtime == 1_700_000_000
    other = await site.build("FROM busybox\nRUN echo y > /c\n", epoch=5, no_cache=True, **NO_NETWORK)
    assert other.stat("c").st_mtime == 5


async def test_a_miss_is_explained(site: Any) -> None:
    dockerfile = "FROM busybox\nARG V=1\nCOPY a.txt b.txt /src/\nRUN echo $V > /v\nRUN echo after\n"
    site.write(a_txt="a", b_txt="b")
    first = await site.build(dockerfile, **NO_NETWORK)
    assert first.why("COPY") == "first build of this step"
    site.write(b_txt="changed")
    second = await site.build(dockerfile, **NO_NETWORK)
    assert second.why("COPY") == "`b.txt` changed"
    third = await site.build(dockerfile, build_args={"V": "2"}, **NO_NETWORK)
    assert third.steps["[2/4] COPY a.txt b.txt /src/"].cached
    assert third.why("RUN echo 2") == "ARG V 1→2"
    fourth = await site.build(dockerfile.replace("echo after", "echo later"), build_args={"V": "2"}, **NO_NETWORK)
    assert fourth.why("later") == "the command changed"


async def test_a_step_that_made_the_same_files_ends_the_rebuild(site: Any) -> None:
    first = await site.build("FROM busybox\nRUN echo x > /x # one\nRUN echo y > /y\n", **NO_NETWORK)
    second = await site.build("FROM busybox\nRUN echo x > /x # two\nRUN echo y > /y\n", **NO_NETWORK)
    assert second.ran == ["[2/3] RUN echo x > /x # two"]
    assert second.tree.chain == first.tree.chain


async def test_stages_nobody_needs_do_not_run_and_others_run_side_by_side(site: Any) -> None:
    site.write(a_txt="a")
    wait = "i=0; until [ -e /c/{other} ]; do i=$((i+1)); [ $i -lt 100 ] || exit 9; usleep 50000; done"
    mount = "--mount=type=cache,target=/c"
    done = await site.build(
        "FROM busybox AS never\nRUN exit 1\n"
        f"FROM busybox AS one\nRUN {mount} touch /c/one; {wait.format(other='two')}; echo 1 > /one\n"
        f"FROM busybox AS two\nRUN {mount} touch /c/two; {wait.format(other='one')}; echo 2 > /two\n"
        "FROM busybox\nCOPY --from=one /one /\nCOPY --from=two /two /\n",
        **NO_NETWORK,
    )
    assert (done.read("one"), done.read("two")) == (b"1\n", b"2\n")
    assert not any("never" in name for name in done.steps)


async def test_two_builds_that_want_the_same_step_run_it_once_and_both_see_its_output(site: Any) -> None:
    dockerfile = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid | tee /id; sleep 0.3\n"
    (site.client.path / "Dockerfile").write_text(dockerfile)
    one, two = await asyncio.gather(*(site.build(dockerfile, **NO_NETWORK) for _ in range(2)))
    assert one.read("id") == two.read("id")
    assert one.output == two.output == one.read("id")


async def test_a_failed_program_is_told_with_its_code_and_place_and_leaves_nothing(either: Any) -> None:
    before = descriptors()
    with pytest.raises(ProgramFailed) as failed:
        await either.build("FROM busybox\nRUN echo said; echo more >&2; exit 7\n", **NO_NETWORK)
    assert failed.value.code == 7
    assert failed.value.message == (
        'process "/bin/sh -c echo said; echo more >&2; exit 7" did not complete successfully: exit code: 7'
    )
    record = either.builder.records.history()[0]
    assert record.status is Status.ERROR
    assert record.error is not None
    assert record.error.line == 2
    assert ">>> RUN echo said" in record.error.excerpt
    assert either.held() == {"snapshots": [], "shims": [], "steps": [], "scratch": [], "jobs": []}
    either.world.snapshots.close()  # what was given up is deleted in the background
    for _ in range(100):
        if not descriptors() - before:
            break
        await asyncio.sleep(0.05)  # the collection that follows a build is looking around
    assert descriptors() - before == Counter()


async def test_a_cancelled_build_ends_its_programs_and_leaves_nothing(site: Any) -> None:
    (site.client.path / "Dockerfile").write_text("FROM busybox\nRUN echo up; sleep 1000\n")
    building = asyncio.create_task(site.build("FROM busybox\nRUN echo up; sleep 1000\n", **NO_NETWORK))
    async with asyncio.timeout(30):
        while not site.shims.ids():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)
    (job,) = site.builder.jobs.values()
    async with asyncio.timeout(30):
        async for batch in job.log:
            if any(getattr(event, "data", b"") == b"up\n" for event in batch):
                break
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert site.held() == {"snapshots": [], "shims": [], "steps": [], "scratch": [], "jobs": []}
    assert site.builder.records.history()[0].status is Status.CANCELED


async def test_secrets_are_seen_by_the_step_and_nowhere_afterwards(either: Any) -> None:
    either.client.secrets["key"] = b"s3cret"
    done = await either.build(
        "FROM busybox\n"
        "RUN --mount=type=secret,id=key cat /run/secrets/key | sha256sum > /sum; stat -c '%a %u' /run/secrets/key\n"
        "RUN --mount=type=secret,id=key,env=KEY [ ${#KEY} = 6 ]\n"
        "RUN --mount=type=secret,id=none [ ! -e /run/secrets/none ]\n",
        **NO_NETWORK,
    )
    assert done.output == b"400 0\n"
    assert not done.has("run/secrets")
    assert not any(b"s3cret" in path.read_bytes() for path in either.world.root.rglob("*") if path.is_file())
    with pytest.raises(NotFound, match="secret missing: not found"):
        await either.build("FROM busybox\nRUN --mount=type=secret,id=missing,required true\n", **NO_NETWORK)


async def test_cache_mounts_stay_and_are_no_part_of_the_image(either: Any) -> None:
    step = "RUN --mount=type=cache,target=/cache,id=c echo {n} >> /cache/log; cat /cache/log\n"
    first = await either.build("FROM busybox\n" + step.format(n=1), **NO_NETWORK)
    second = await either.build("FROM busybox\n" + step.format(n=2), **NO_NETWORK)
    assert (first.output, second.output) == (b"1\n", b"1\n2\n")
    assert not second.has("cache")


async def test_bind_mounts_read_a_part_of_another_tree_and_what_is_written_there_is_dropped(either: Any) -> None:
    either.write(dir__f_txt="from the context")
    done = await either.build(
        "FROM busybox AS one\nRUN mkdir -p /d/sub && echo hello > /d/sub/f && ln -s / /d/up\n"
        "FROM busybox\n"
        "RUN --mount=from=one,source=/d/sub,target=/m,rw cat /m/f && echo x > /m/g && cat /m/g\n"
        "RUN --mount=from=one,source=/d/sub,target=/m ls /m && ! touch /m/x 2>/dev/null\n"
        "RUN --mount=source=dir,target=/ctx,rw cat /ctx/f.txt && echo y > /ctx/f.txt\n",
        **NO_NETWORK,
    )
    assert done.output == b"hello\nx\nf\nfrom the context"
    assert (either.client.path / "dir/f.txt").read_text() == "from the context"
    assert not done.has("m")
    assert not done.has("ctx")


async def test_a_link_in_a_tree_leads_nowhere_outside_of_it(site: Any) -> None:
    with pytest.raises(WherryError, match="/out"):
        await site.build(
            "FROM busybox AS one\nRUN ln -s /../../../etc/hostname /out\n"
            "FROM busybox\nRUN --mount=from=one,source=/out,target=/m cat /m\n",
            **NO_NETWORK,
        )


async def test_the_cache_is_there_after_a_restart(tmp_path: Path) -> None:
    dockerfile = "FROM busybox\nRUN echo x > /x\n"
    async with open_site(tmp_path / "site") as site:
        await load_busybox(site)
        first = await site.build(dockerfile, **NO_NETWORK)
    async with open_site(tmp_path / "site") as site:
        again = await site.build(dockerfile, **NO_NETWORK)
        assert again.ran == []
        assert again.tree.chain == first.tree.chain
        assert [record.status for record in site.builder.records.history()] == [Status.COMPLETED, Status.COMPLETED]


async def test_pruning_takes_what_no_image_has_and_the_next_build_makes_it_again(site: Any) -> None:
    dockerfile = "FROM busybox\nRUN --mount=type=cache,target=/c echo x > /x\n"
    first = await site.build(dockerfile, exports=(Export(type="image", attributes={"name": "kept"}),), **NO_NETWORK)
    other = await site.build(dockerfile.replace("/x", "/y"), **NO_NETWORK)
    usage = {each.type for each in await site.builder.usage()}
    assert usage == {"regular", "exec.cachemount"}
    gone = await site.builder.prune(PruneOptions())
    assert sorted(each.type for each in gone) == ["exec.cachemount", "regular"]
    assert site.world.snapshots.has(first.tree.chain)
    assert not site.world.snapshots.has(other.tree.chain)
    again = await site.build(dockerfile.replace("/x", "/y"), **NO_NETWORK)
    assert len(again.ran) == 1


async def test_an_image_runs_on_after_the_cache_went(site: Any) -> None:
    done = await site.build(
        'FROM busybox\nRUN echo x > /x\nENV A=b\nCMD ["cat", "/x"]\n',
        exports=(Export(type="image", attributes={"name": "mine"}),),
        **NO_NETWORK,
    )
    await site.builder.prune(PruneOptions(all=True))
    image = site.world.deps.store.get("mine")
    assert image.id == done.response["containerimage.config.digest"]
    assert image.chain == done.tree.chain
    assert site.world.snapshots.has(image.chain)
    assert "A=b" in (image.config.config.env or [])


async def test_python_does_not_compile_again_what_a_step_compiled(site: Any) -> None:
    # no Python in busybox: a header as CPython writes it, made by the shell
    script = (
        "mkdir -p /p/__pycache__ && echo 'x = 1' > /p/m.py && "
        "t=$(stat -c %Y /p/m.py) && h=$(printf '%08x' $t) && "
        'printf "\\\\xa7\\\\x0d\\\\x0d\\\\x0a\\\\x00\\\\x00\\\\x00\\\\x00'
        "\\\\x$(echo $h | cut -c7-8)\\\\x$(echo $h | cut -c5-6)\\\\x$(echo $h | cut -c3-4)\\\\x$(echo $h | cut -c1-2)"
        '\\\\x06\\\\x00\\\\x00\\\\x00rest" > /p/__pycache__/m.cpython-311.pyc'
    )
    done = await site.build(f"FROM busybox\nRUN {script}\n", epoch=1_500_000_000, **NO_NETWORK)
    header = done.read("p/__pycache__/m.cpython-311.pyc")
    assert done.stat("p/m.py").st_mtime == 1_500_000_000
    assert int.from_bytes(header[8:12], "little") == 1_500_000_000
    assert header.endswith(b"rest")


async def test_names_of_steps_and_their_keys_are_as_clients_expect(site: Any) -> None:
    done = await site.build("FROM busybox\nRUN true\n", **NO_NETWORK)
    assert set(done.steps) >= {
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/busybox:latest",
        "[internal] load .dockerignore",
        "[1/2] FROM docker.io/library/busybox:latest",
        "[2/2] RUN true",
    }
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", event.key) for event in done.steps.values())
    assert os.path.isdir(site.world.root / "build" / "records" / done.job.ref)


async def test_verifying_builds_again_and_says_what_differs(site: Any) -> None:
    (site.client.path / "Dockerfile").write_text(
        "FROM busybox\nRUN echo same > /same\nRUN cat /proc/sys/kernel/random/uuid > /random\n"
    )
    job = await site.begin()
    try:
        built = await job.frontend(Options(resolve=ResolveMode.LOCAL, **NO_NETWORK))
        found = await job.verify(built)
    finally:
        await job.end()
    assert len(found) == 1
    assert "/random" in found[0]
    assert site.held() == {"snapshots": [], "shims": [], "steps": [], "scratch": [], "jobs": []}


async def test_a_reproducible_build_verifies(site: Any) -> None:
    (site.client.path / "Dockerfile").write_text("FROM busybox\nRUN mkdir /d; echo same > /d/f; date > /dev/null\n")
    job = await site.begin()
    try:
        assert await job.verify(await job.frontend(Options(resolve=ResolveMode.LOCAL, **NO_NETWORK))) == []
    finally:
        await job.end()


async def test_what_is_on_disk_is_what_the_image_unpacks_to(either: Any) -> None:
    """Times with parts of a second, which archives lose, are the trap."""
    either.write(a_txt="one", sub__b_txt="two")
    for name in ("a.txt", "sub/b.txt", "sub"):
        os.utime(either.client.path / name, ns=(1_650_000_000_123_456_789, 1_650_000_000_123_456_789))
    done = await either.build(
        "FROM busybox\nCOPY . /app/\nRUN echo x > /x; cp -p /app/a.txt /y; mkdir /z; chown 1:1 /app/sub/b.txt\n",
        exports=(Export(type="image", attributes={"name": "mine"}),),
        **NO_NETWORK,
    )
    assert done.stat("app/a.txt").st_mtime_ns == 1_650_000_000_000_000_000
    assert done.stat("y").st_mtime_ns == 1_650_000_000_000_000_000
    report = await check(either.world.deps, progress=lambda message: None)
    assert report.problems == []
