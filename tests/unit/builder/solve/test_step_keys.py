"""What a cache key depends on, and what it does not."""

from dataclasses import replace

import pytest

from wherry.builder.graph import (
    Copy,
    Exec,
    ExecMount,
    Files,
    FileStep,
    Limits,
    MakeDirectory,
    Remove,
    Ulimit,
    Vertex,
)
from wherry.builder.solve.keys import ingredients, selection_key, step_key
from wherry.spec.image import Platform

AMD64 = Platform(os="linux", architecture="amd64")
RUN = Exec(args=("/bin/sh", "-c", "make"), env=("A=1",), mounts=(ExecMount(target="/", input=0, output=0),))
COPY = Files(steps=(FileStep(action=Copy(source="a", target="/x"), input=0, secondary=1, output=0),))


def key(op: object, *identities: str, platform: Platform = AMD64, **fields: object) -> str:
    return step_key(Vertex(op=op, platform=platform, **fields), identities)  # type: ignore[arg-type]


def test_the_same_step_on_the_same_inputs_has_the_same_key_whatever_it_is_called() -> None:
    assert key(RUN, "a", name="[1/2] RUN make", slot="x/1") == key(RUN, "a", name="[3/7] RUN make", ignore_cache=True)


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, args=("/bin/sh", "-c", "make install")),
        replace(RUN, args=("/bin/sh", "-cmake")),
        replace(RUN, env=("A=2",)),
        replace(RUN, cwd="/src"),
        replace(RUN, user="1000"),
        replace(RUN, insecure=True),
        replace(RUN, extra_hosts=(("db", "10.0.0.1"),)),
        replace(RUN, mounts=(*RUN.mounts, ExecMount(target="/m", input=1))),
    ],
)
def test_what_a_program_can_see_counts(other: Exec) -> None:
    assert key(RUN, "a") != key(other, "a")


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, limits=Limits(memory=1 << 30, ulimits=(Ulimit("nofile", 1, 2),), shm_size=1)),
        replace(RUN, proxies=("HTTP_PROXY=http://proxy",)),
    ],
)
def test_limits_and_proxies_do_not(other: Exec) -> None:
    assert key(RUN, "a") == key(other, "a")


def test_inputs_count_and_so_does_their_order() -> None:
    assert len({key(RUN, "a"), key(RUN, "b"), key(RUN, "a", "b"), key(RUN, "b", "a"), key(RUN, "ab")}) == 5


def test_a_program_runs_for_a_platform_and_files_are_copied_for_any() -> None:
    arm = Platform(os="linux", architecture="arm64")
    assert key(RUN, "a") != key(RUN, "a", platform=arm)
    assert key(COPY, "a", "b") == key(COPY, "a", "b", platform=arm)


def test_times_do_not_count() -> None:
    later = Files(steps=(replace(COPY.steps[0], action=Copy(source="a", target="/x", timestamp=5)),))
    assert key(COPY, "a", "b") == key(later, "a", "b")
    made = [Files(steps=(FileStep(action=MakeDirectory(path="/d", timestamp=at)),)) for at in (-1, 7)]
    assert key(made[0]) == key(made[1])


def test_actions_that_have_no_time_have_keys_too() -> None:
    removing = [Files(steps=(FileStep(action=Remove(path=path)),)) for path in ("/a", "/b")]
    assert key(removing[0]) != key(removing[1])


def test_bytes_that_are_no_text_have_a_key() -> None:
    odd = replace(RUN, args=("/bin/sh", "-c", b"\xff".decode("utf-8", "surrogateescape")))
    assert key(odd, "a") != key(RUN, "a")


def test_a_selection_is_what_is_taken_not_where_it_goes() -> None:
    taken = Copy(source="a", target="/x", mode="644")
    assert selection_key("t", taken) == selection_key("t", Copy(source="a", target="/y"))
    assert selection_key("t", taken) != selection_key("t", replace(taken, exclude=("*.pyc",)))
    assert selection_key("t", taken) != selection_key("u", taken)


def test_ingredients_name_all_that_a_step_is_made_from() -> None:
    vertex = Vertex(op=replace(RUN, env=("A=1", "V=2")), said="RUN make $V", args={"V": "2"}, ignore_cache=True)
    found = ingredients(vertex, {"parent": "sha256:p"}, {"a.txt": "sha256:f"}, {"/m": "sha256:m"})
    assert found == {
        "command": "RUN make $V",
        "ARG V": "2",
        "ENV A": "1",
        "parent": "sha256:p",
        "file a.txt": "sha256:f",
        "mount /m": "sha256:m",
        "user": "root",
        "working directory": "/",
        "network": "sandbox",
        "shell": "/bin/sh -c",
        "no-cache": "",
    }
