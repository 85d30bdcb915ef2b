"""Whatever a Dockerfile says: there is a graph, or an error with a place."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.conversion import Trial
from wherry.builder.dockerfile.convert.describing import describe
from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.stages import parse_dockerfile

KEYWORDS = (
    *("FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "ADD", "CMD", "ENTRYPOINT", "SHELL", "EXPOSE", "VOLUME", "USER"),
    *("WORKDIR", "STOPSIGNAL", "HEALTHCHECK", "ONBUILD"),
)
FLAGS = (
    *("--from=one", "--from=two", "--from=0", "--from=trigger", "--from=given", "--from=$A", "--from=nosuch", "--link"),
    *("--chown=a:b", "--chown=$B", "--chmod=7777", "--chmod=u+x", "--chmod=99", "--parents", "--exclude=*"),
    *("--checksum=sha256:0", "--keep-git-dir=true", "--unpack=false", "--platform=$BUILDPLATFORM", "--platform=$C"),
    *("--mount=type=cache,target=/c", "--mount=from=one,target=$A", "--mount=target=/x,source=..", "--network=none"),
    *("--mount=type=secret,id=x,env=E", "--mount=type=ssh", "--mount=type=tmpfs,target=t,size=1k", "--interval=1s"),
    *("--mount=type=bind,from=9,target=/y", "--mount=type=cache,mode=$A,target=/z", "--security=insecure"),
)
WORDS = (
    *("a", "b", "$A", "${A}", "${A:-b}", "${B:?no}", "${A##*/}", "${A/a/c}", "$C", "'", '"', '"a b"', "\\", "\\$A"),
    *(
        "=",
        "A=b",
        "C=$A",
        "/",
        ".",
        "..",
        "../..",
        "a/./b",
        "/a/",
        "*",
        "[a",
        "?",
        "**",
        ":",
        "@",
        "0",
        "1",
        "99",
        "-1",
    ),
    *("one", "two", "ONE", "scratch", "context", "alpine:3.20", "debian", "trigger", "nosuch", "bare", "given"),
    *("https://e.org/a", "https://e.org/a.git#b:c", "https://e.org/a.git?x=y", "git@e.org:a/b", "http://", "http://["),
    *("<<E", "<<'E'", "[]", '["a","b"]', '["$A","/x/"]', "AS one", "AS two", "CMD", "CMD x", "NONE", "80", "80-90/udp"),
    *("SIGTERM", "RUN x", "COPY --from=two a b", "ARG A", "ENV A b", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "\x01"),
)


def line_of(keyword: str, flags: list[str], words: list[str]) -> str:
    line = " ".join([keyword, *flags, *words])
    documents = sum(word.startswith("<<") for word in words) if keyword in ("RUN", "COPY", "ADD") else 0
    return line + "\nx $A\nE" * documents


def is_understood(line: str) -> bool:
    try:
        parse_dockerfile(f"FROM scratch\n{line}\n".encode())
    except DockerfileError:
        return False
    return True


LINES = st.builds(
    line_of,
    st.sampled_from(KEYWORDS),
    st.lists(st.sampled_from(FLAGS), max_size=2),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
).map(lambda line: line if is_understood(line) else "RUN x")


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=6), st.booleans())
def test_there_is_a_graph_or_an_error_with_a_place(lines: list[str], several: bool):
    text = "\n".join(["ARG A=a/b", "FROM alpine:3.20 AS one", "ARG A", *lines])
    attributes = {"context:given": "local:given", "build-arg:B": "b"}
    attributes |= {"platform": "linux/amd64,linux/arm64"} if several else {}
    trial = Trial(text, attributes)
    try:
        targets = asyncio.run(trial.targets())
    except DockerfileError as error:
        failed = error
    else:
        assert describe(targets)
        assert len(targets) == 1 + several
        return
    assert failed.location is not None
