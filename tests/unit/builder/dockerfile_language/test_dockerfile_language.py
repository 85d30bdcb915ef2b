"""What the folder of Dockerfiles does not show: places, suggestions, triggers, targets, bounds."""

import pytest

from wherry.builder.dockerfile.directives import check_frontend
from wherry.builder.dockerfile.errors import DockerfileError, excerpt, located, pinpoint, quoted
from wherry.builder.dockerfile.flags import parse_bool, parse_duration, parse_size
from wherry.builder.dockerfile.instructions import Copy, Onbuild, Run, parse_trigger
from wherry.builder.dockerfile.parser import MAX_INSTRUCTIONS, MAX_SIZE, Heredoc, parse
from wherry.builder.dockerfile.stages import parse_dockerfile
from wherry.builder.dockerfile.suggest import hint, near
from wherry.builder.graph import Location, Range

FROM_LINE = Location("Dockerfile", b"FROM base\nRUN x\n", (Range(1, 1, 1),))


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_gets_its_place_once():
    with pytest.raises(DockerfileError) as caught, located(FROM_LINE, "outer: "):
        raise DockerfileError("wrong", near="base")
    assert caught.value.message == "outer: wrong"
    assert caught.value.location == Location("Dockerfile", FROM_LINE.data, (Range(1, 1, 6),))
    with pytest.raises(DockerfileError) as again, located(Location("other", b"", ()), "x: "):
        raise caught.value
    assert again.value is caught.value


def test_a_word_is_found_within_the_lines_of_its_instruction_only():
    data = b"RUN a\nRUN b \\\n  caf\xc3\xa9 a\nRUN c\n"
    both = Location("f", data, (Range(2, 3),))
    assert pinpoint(both, "a").ranges == (Range(3, 3, 4),)
    assert pinpoint(both, " a").ranges == (Range(3, 3, 7),), "columns count characters"
    assert pinpoint(both, "c\n") == both
    assert pinpoint(both, "") == both


def test_an_excerpt_shows_two_lines_around_one_and_one_around_several():
    data = b"1\n2\n3\n4\n5\n6\x1b[31m\n"
    assert excerpt(Location("f", data, (Range(4, 4, 2),))) == (
        "f:4:2\n--------------------\n   2 |     2\n   3 |     3\n   4 | >>> 4\n   5 |     5\n   6 |     6\ufffd[31m\n"
        "--------------------"
    )
    assert excerpt(Location("f", data, (Range(1, 2),))) == (
        "f:1\n--------------------\n   1 | >>> 1\n   2 | >>> 2\n   3 |     3\n--------------------"
    )
    assert excerpt(Location("f", data, ())) == "f"
    assert excerpt(Location("f", b"", (Range(9, 12),))) == "f:9\n--------------------\n--------------------"


def test_long_words_are_not_repeated_in_full():
    assert quoted('a\n"') == '"a\\n\\""'
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(b"FROM a\n" + b"X" * 100_000)
    assert len(caught.value.message) < 400


# --- suggestions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("RNU", "RUN"),
        ("rnu", "run"),
        ("Copi", "COPY"),
        ("ENTRYPIONT", "ENTRYPOINT"),
        ("RUN", ""),
        ("run", ""),
        ("EOF", ""),
        ("LONGWORD", ""),
        ("x" * 1000, ""),
    ],
)
def test_near_misses_in_any_case(word, found):
    assert near(word, ("COPY", "RUN", "ENV", "ENTRYPOINT"), any_case=True) == found


def test_near_misses_where_case_counts():
    assert near("from", ("FROM",)) == ""
    assert hint("form", ("from", "for")) == " (did you mean from?)"
    assert hint("from", ("from", "form")) == ""
    assert hint("x", ()) == ""


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ns"),
    [("1h5m", 3_900 * 10**9), ("1.5s", 1_500_000_000), (".5ms", 500_000), ("-2us", -2000), ("+1ns", 1), ("0", 0),
     ("1µs", 1000), ("1.s", 10**9)],
)  # fmt: skip
def test_durations(text, ns):
    assert parse_duration(text) == ns


@pytest.mark.parametrize("text", ["5", "", "-", "1x", "s", "1s2", "1 s", "1e3s", "9" * 30 + "h", "1٣s"])
def test_what_is_no_duration(text):
    with pytest.raises(DockerfileError, match="time: "):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 64 << 20), ("1.5GiB", 3 << 29), ("100", 100), ("1 kB", 1024), ("2tb", 2 << 40), ("", None), ("m", None),
     ("-1", None), ("1x", None), ("9" * 15 + "p", None), ("1e3", None)],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


def test_truth():
    assert [parse_bool(text) for text in ("1", "t", "True", "0", "F", "false", "yes", "")] == [
        True, True, True, False, False, False, None, None,
    ]  # fmt: skip


# --- frontends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["docker/dockerfile", "docker/dockerfile:1", "docker/dockerfile:1.7-labs@sha256:" + "a" * 64,
     "docker.io/docker/dockerfile:1 --x", "docker/dockerfile-upstream:master", "index.docker.io/docker/dockerfile"],
)  # fmt: skip
def test_dockers_own_frontends_are_built_in(value):
    check_frontend(value)


@pytest.mark.parametrize(
    "value", ["", "x", "docker/dockerfile2", "library/docker/dockerfile", "ghcr.io/a/b:1@x/y", "::"]
)
def test_other_frontends_are_refused_by_name(value):
    with pytest.raises(DockerfileError, match="is not supported: only Docker's own language"):
        check_frontend(value)


def test_behind_a_shebang_the_escape_character_is_not_read():
    dockerfile = parse_dockerfile(b"#!a\n# check=skip=all\n# escape=`\nFROM a\nRUN b \\\n c\n")
    assert set(dockerfile.parsed.directives) == {"check"}
    assert [instruction.original for instruction in dockerfile.stages[0].instructions] == ["RUN b  c"]


# --- stages -----------------------------------------------------------------------------------------------------------

STAGES = b"FROM a AS Build\nFROM b\nFROM c AS 2x\n".replace(b" AS 2x", b" AS last") + b"FROM d AS build\n"


def test_stages_are_found_by_name_in_any_case_and_by_number():
    dockerfile = parse_dockerfile(STAGES)
    found = {name: stage.number for name in ("build", "BUILD", "last", "1", "0") if (stage := dockerfile.stage(name))}
    assert found == {"build": 3, "BUILD": 3, "last": 2, "1": 1, "0": 0}
    assert [dockerfile.stage(name) for name in ("4", "", "x", "-1", "1" * 5000, "\u0663")] == [None] * 6
    assert dockerfile.target("").number == 3


def test_a_target_that_is_not_there_is_answered_with_the_near_one():
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(STAGES).target("Lats")
    assert caught.value.message == 'target stage "Lats" could not be found (did you mean last?)'


# --- triggers ---------------------------------------------------------------------------------------------------------


def test_a_trigger_is_one_instruction_with_its_heredocs():
    onbuild = parse_dockerfile(b"FROM a\nONBUILD COPY <<EOF --x /b\nhi\nEOF\n").stages[0].instructions[0]
    assert isinstance(onbuild, Onbuild)
    trigger = parse_trigger(onbuild.expression, FROM_LINE)
    assert isinstance(trigger, Copy)
    assert trigger.sources == (Heredoc(name="EOF", content="hi\n"), "--x")
    assert trigger.location == FROM_LINE
    assert isinstance(parse_trigger("run  echo \\\n b", FROM_LINE), Run)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("RUN a\nRUN b", "onbuild trigger should be a single expression"),
        ("", "onbuild trigger should be a single expression"),
        ("# nothing", "onbuild trigger should be a single expression"),
        ("FROM x", "ONBUILD FROM x: FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD RUN x", "ONBUILD ONBUILD RUN x: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("NOPE x", "ONBUILD NOPE x: unknown instruction: NOPE"),
        ("COPY x", "ONBUILD COPY x: COPY requires at least two arguments, but only one was provided. Destination could "
         "not be determined"),
        ("RUN <<EOF", "unterminated heredoc: no line 'EOF' ends it"),
    ],
)  # fmt: skip
def test_a_bad_trigger_is_told_at_the_line_of_its_image(expression, message):
    with pytest.raises(DockerfileError) as caught:
        parse_trigger(expression, FROM_LINE)
    assert caught.value.message == message
    assert caught.value.location is not None
    assert caught.value.location.ranges[0].start == 1


# --- here-documents ---------------------------------------------------------------------------------------------------


def test_tabs_are_taken_off_only_where_the_name_says_so():
    assert Heredoc(name="a", content="\t\tx\n\ty\n  z\n", chomp=True).text == "x\ny\n  z\n"
    assert Heredoc(name="a", content="\tx\n").text == "\tx\n"


# --- mounts -----------------------------------------------------------------------------------------------------------


def test_variables_of_mounts_are_replaced_when_they_have_values():
    run = parse_dockerfile(b"FROM a\nRUN --mount=type=$t,target=$d,sharing=$s x\n").stages[0].instructions[0]
    assert isinstance(run, Run)
    values = {"$t": "cache", "$d": "/c", "$s": "private"}
    (mount,) = run.mounts(lambda text: values.get(text, text))
    assert (mount.kind, mount.target, mount.sharing, mount.readonly) == ("cache", "/c", "private", False)
    with pytest.raises(DockerfileError) as caught:
        run.mounts(lambda text: "nothing" if text == "$t" else text)
    assert caught.value.message == 'unsupported mount type "nothing"'
    assert caught.value.location is not None


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"RUN " + b"\\\n" * 400_000,
        b"RUN " + b"\\" * 1_000_000,
        b"#\n" * 400_000 + b"RUN x",
        b"RUN x \\\n" + b"# c\n" * 300_000 + b"y",
        b"RUN <<" * 150_000,
        b"RUN " + b"<<a " * 900 + b"\n" + b"a\n" * 900,
        b"ONBUILD " * 100_000,
        b"RUN " + b"--x " * 250_000,
        b"RUN --mount=" + b"a," * 400_000 + b" x",
        b"COPY " + b"x " * 400_000,
        b"ENV " + b"a=b " * 200_000,
        b"CMD " + b"[" * 1_000_000,
        b'CMD ["' + b"\\u0041" * 150_000 + b'"]',
        b"EXPOSE " + b"1 " * 400_000,
        b"# c\n" * 250_000 + b"RUN x",
        b"# escape=" + b" " * 900_000 + b"x",
        b"HEALTHCHECK --interval=" + b"1s" * 400_000 + b" CMD x",
    ],
    ids=range(17),
)
def test_a_megabyte_of_anything_is_read_in_linear_time(body):
    """Quadratic time would not end within that of a test."""
    told = outcome(b"FROM a\n" + body)
    assert told is None or (told.location is not None and len(told.message) < 1000)


def outcome(data: bytes) -> DockerfileError | None:
    try:
        parse_dockerfile(data)
    except DockerfileError as error:
        return error
    return None


def test_sizes_are_bounded():
    with pytest.raises(DockerfileError, match="more than 4194304 are not read"):
        parse(b"a" * (MAX_SIZE + 1))
    with pytest.raises(DockerfileError, match="more than 20000 instructions"):
        parse(b"a\n" * (MAX_INSTRUCTIONS + 1))
    with pytest.raises(DockerfileError, match="more than 1000 heredocs"):
        parse(b"RUN " + b"<<a " * 1001)
