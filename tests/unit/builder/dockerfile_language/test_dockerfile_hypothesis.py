"""Whatever the bytes: an answer, or a DockerfileError; and what is read stands in the file."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.ignore import Patterns, read_ignore
from wherry.builder.dockerfile.instructions import KEYWORDS
from wherry.builder.dockerfile.lint import checks_of, lint
from wherry.builder.dockerfile.outline import lint_result, outline, targets
from wherry.builder.dockerfile.parser import parse
from wherry.builder.dockerfile.rules import Checks
from wherry.builder.dockerfile.stages import Dockerfile, parse_dockerfile, read_stages
from wherry.builder.dockerfile.words import expand

PIECES = (
    *KEYWORDS, *"\\`\"'$#=-<>[]{}()*?!/:;,.%\n\r\t\0 ", "<<EOF", "\nEOF\n", "<<-'E'", "--mount=type=", "cache",
    "secret",
    "target=/x", "--from=", "AS ", "${x:-", "${x##*", "}", "# syntax=", "# escape=`\n", "# check=skip=all\n", '["a"]',
    "\\\n", "a=b", "scratch", "é", "\udcff", "--", "none", "0",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
FILES = st.one_of(
    st.binary(max_size=200),
    TEXTS.map(lambda text: text.encode("utf-8", "surrogateescape")),
    TEXTS.map(lambda text: b"FROM scratch AS x\n" + text.encode("utf-8", "surrogateescape")),
)


def read(data: bytes) -> Dockerfile | DockerfileError:
    try:
        return parse_dockerfile(data)
    except DockerfileError as error:
        return error


@given(FILES)
def test_a_dockerfile_is_read_or_refused_with_its_place(data):
    dockerfile = read(data)
    if isinstance(dockerfile, DockerfileError):
        assert dockerfile.location is not None
        assert dockerfile.rendered.startswith("Dockerfile")
        return
    for node in dockerfile.parsed.instructions:
        assert 1 <= node.range.start <= node.range.end <= data.count(b"\n") + 1
        assert node.original.lower().startswith(node.keyword)
    findings = lint(dockerfile, checks=Checks(experimental_all=True))
    assert lint_result("Dockerfile", data, findings)["result.statuscode"] == (b"1" if findings else b"0")
    targets(dockerfile)
    outline(dockerfile)
    with contextlib.suppress(DockerfileError):
        checks_of(dockerfile)


@given(FILES)
def test_what_was_read_and_is_written_again_in_one_line_each_means_the_same(data):
    try:
        parsed = parse(data)
        first = read_stages(parsed)
    except DockerfileError:
        return
    if parsed.escape != "\\" or any(node.heredocs for node in parsed.instructions):
        return
    lines = [node.original for node in parsed.instructions]
    if any(
        line.endswith("\\") or line.startswith("#") or set(line) & set("\n\r\v\f\x1c\x1d\x1e\x85") for line in lines
    ):
        return  # they would be read on
    again = parse_dockerfile("\n".join(lines).encode())
    assert [node.original for node in again.parsed.instructions] == lines
    assert [(node.keyword, node.flags, node.rest) for node in again.parsed.instructions] == [
        (node.keyword, node.flags, node.rest) for node in parsed.instructions
    ]
    assert [stage.name for stage in again.stages] == [stage.name for stage in first.stages]


@given(TEXTS, st.dictionaries(st.sampled_from(["x", "a"]), TEXTS), st.sampled_from(["\\", "`"]), st.booleans())
def test_a_text_is_expanded_or_refused(text, env, escape, flag):
    with contextlib.suppress(DockerfileError):
        told = expand(text, env, escape=escape, quotes=flag, raw_quotes=flag, keep_unset=not flag)
        assert told.missed <= told.unset
        assert not told.used & told.unset
        assert told.used <= env.keys()
        assert "".join(told.text.split()) == "".join("".join(told.words).split())


@given(st.lists(st.text("ab/*?[]^-!\\. ", max_size=12), max_size=4), st.text("ab/.", max_size=12))
def test_patterns_match_or_are_refused(lines, path):
    with contextlib.suppress(DockerfileError):
        patterns = Patterns(lines)
        if patterns.matches(path) and patterns.skips_below(path):
            assert patterns.matches(path + "/b/a")


@given(st.binary(max_size=100))
def test_an_ignore_file_is_read_or_refused(data):
    patterns = read_ignore(data)
    assert all(patterns)
    with contextlib.suppress(DockerfileError):
        Patterns(patterns).matches("a/b")
