"""`--change`: Dockerfile instructions laid over a config."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidParameter, WherryError
from wherry.images.making.changes import apply, merge
from wherry.spec.engine import ContainerConfig, HealthConfig

EMPTY = ContainerConfig()


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ('CMD ["a", "b c"]', "cmd", ["a", "b c"]),
        ("cmd echo hi", "cmd", ["/bin/sh", "-c", "echo hi"]),
        ("CMD [not json", "cmd", ["/bin/sh", "-c", "[not json"]),
        ('ENTRYPOINT ["x"]', "entrypoint", ["x"]),
        ("ENTRYPOINT", "entrypoint", None),
        ("CMD", "cmd", ["/bin/sh", "-c"]),
        ("CMD []", "cmd", []),
        ("ENV A=1 B='two words' C=x\\ y", "env", ["A=1", "B=two words", "C=x y"]),
        ("ENV A one two", "env", ["A=one two"]),
        ('LABEL a=1 b="q\\"r"', "labels", {"a": "1", "b": 'q"r'}),
        ("EXPOSE 80 443/TCP 53/udp", "exposed_ports", {"80/tcp": {}, "443/tcp": {}, "53/udp": {}}),
        ("EXPOSE 8000-8002", "exposed_ports", {"8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}),
        ("EXPOSE 127.0.0.1:81:80", "exposed_ports", {"80/tcp": {}}),
        ("USER app:app", "user", "app:app"),
        ("USER\tapp", "user", "app"),
        ("WORKDIR /a/../b/", "working_dir", "/a/../b/"),
        ("WORKDIR rel/../to/./x", "working_dir", "/to/x"),
        ('WORKDIR "/a b"', "working_dir", "/a b"),
        ("VOLUME /a /b", "volumes", {"/a": {}, "/b": {}}),
        ('VOLUME ["/a b"]', "volumes", {"/a b": {}}),
        ("STOPSIGNAL SIGINT", "stop_signal", "SIGINT"),
        ("STOPSIGNAL rtmin+3", "stop_signal", "rtmin+3"),
        ("STOPSIGNAL 9", "stop_signal", "9"),
        ("ONBUILD RUN x", "on_build", ["RUN x"]),
        ("HEALTHCHECK NONE", "healthcheck", HealthConfig(test=["NONE"])),
        (
            'HEALTHCHECK --interval=1m30s --retries=2 CMD ["c"]',
            "healthcheck",
            HealthConfig(test=["CMD", "c"], interval=90 * 10**9, retries=2),
        ),
        ("HEALTHCHECK CMD curl x", "healthcheck", HealthConfig(test=["CMD-SHELL", "curl x"])),
        ("ENV A=1 \\\n  B=2", "env", ["A=1", "B=2"]),
        ("# a comment\nUSER x", "user", "x"),
    ],
)
def test_an_instruction_sets_its_field(change, field, value):
    assert getattr(apply(EMPTY, [change]), field) == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("RUN x", "run is not a valid change command"),
        ("nonsense", "nonsense is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", 'Syntax error - can\'t find = in "B"'),
        ("ENV =1", "ENV names can not be blank"),
        ("ENV A='1", 'failed to process "\'1": unexpected end of statement while looking for matching single-quote'),
        ('ENV A="1', "matching double-quote"),
        ("ENV A=${B", "missing '}' in substitution"),
        ("ENV A=${B?}", "B: is not allowed to be unset"),
        ("ENV A=${B?gone}", "B: gone"),
        ("ENV A=${B/x/y}", "unsupported modifier (/)"),
        ("ENV A=" + "${B:-" * 30 + "}" * 30, "nested too deeply"),
        ("EXPOSE 0", "invalid containerPort: 0"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE 9-8", "invalid containerPort: 9-8"),
        ("EXPOSE a", "invalid containerPort: a"),
        ("USER", "USER requires exactly one argument"),
        ('VOLUME [""]', "VOLUME specified can not be an empty string"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("HEALTHCHECK WHAT", 'Unknown type "WHAT" in HEALTHCHECK'),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK --interval=soon CMD x", 'time: invalid duration "soon"'),
        ("HEALTHCHECK --interval=1us CMD x", "cannot be less than 1ms"),
        ("HEALTHCHECK --interval=-1s CMD x", "cannot be less than 1ms"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=x CMD x", 'strconv.ParseInt: parsing "x": invalid syntax'),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK CMD []", "Missing command after HEALTHCHECK CMD"),
        ("EXPOSE 80/xxx", "invalid proto: xxx"),
        ("STOPSIGNAL nonsense", "invalid signal: nonsense"),
        ("STOPSIGNAL 0", "invalid signal: 0"),
        ("STOPSIGNAL a b", "STOPSIGNAL requires exactly one argument"),
        ("CMD --x", "unknown flag: --x"),
        ('CMD ["a", 1]', "arrays must be comprised of strings only"),
        ("", "file with no instructions"),
        ("# nothing", "file with no instructions"),
        ("HEALTHCHECK --nope=1 CMD x", "unknown flag: --nope"),
    ],
)
def test_a_bad_instruction_is_refused_with_its_cause(change, words):
    with pytest.raises(InvalidParameter) as caught:
        apply(EMPTY, [change])
    assert words in caught.value.message


@given(st.lists(st.text(max_size=60), max_size=3))
def test_no_text_fails_otherwise(changes):
    try:
        apply(EMPTY, changes)
    except WherryError:
        return


def test_changes_add_to_what_is_there():
    config = ContainerConfig(env=["A=1", "B=2"], labels={"x": "1"}, exposed_ports={"1/tcp": {}}, working_dir="/w")
    changed = apply(config, ["ENV A=9", "LABEL y=2", "EXPOSE 2", "WORKDIR sub"])
    assert changed.env == ["B=2", "A=9"]
    assert changed.labels == {"x": "1", "y": "2"}
    assert changed.exposed_ports == {"1/tcp": {}, "2/tcp": {}}
    assert changed.working_dir == "/w/sub"
    assert config.env == ["A=1", "B=2"]


VARIABLES = {
    "$A": "1",
    "${A}x": "1x",
    "$A.b": "1.b",
    "$": "$",
    "a$": "a$",
    "\\$A": "$A",
    "'$A'": "$A",
    '"$A \\" \\x"': '1 " \\x',
    "$Z": "",
    "${Z:-d}": "d",
    "${Z-d}": "d",
    "${EMPTY:-d}": "d",
    "${EMPTY-d}": "",
    "${A:+y}": "y",
    "${EMPTY:+y}": "",
    "${EMPTY+y}": "y",
    "${Z:-${A}}": "1",
    "${A:?no}": "1",
}


@pytest.mark.parametrize("text", VARIABLES)
def test_variables_of_the_environment_are_put_in(text):
    config = ContainerConfig(env=["A=1", "EMPTY="])
    assert apply(config, [f"LABEL x={text}"]).labels == {"x": VARIABLES[text]}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ("ENV B=$A C=$B", "env", ["A=p", "B=p", "C="]),
        ("LABEL $A=$A", "labels", {"p": "p"}),
        ("USER $A", "user", "p"),
        ("WORKDIR /$A", "working_dir", "/p"),
        ("VOLUME /v$A", "volumes", {"/vp": {}}),
        ("CMD echo $A", "cmd", ["/bin/sh", "-c", "echo $A"]),
        ("ONBUILD RUN $A", "on_build", ["RUN $A"]),
    ],
)
def test_where_variables_count(change, field, value):
    assert getattr(apply(ContainerConfig(env=["A=p"]), [change]), field) == value


def test_an_exposed_port_may_come_from_a_variable():
    changed = apply(EMPTY, ["ENV P='80 81/udp'", "EXPOSE $P"])
    assert changed.exposed_ports == {"80/tcp": {}, "81/udp": {}}


def test_an_entrypoint_drops_a_command_that_was_not_changed_with_it():
    config = ContainerConfig(cmd=["old"])
    assert apply(config, ['ENTRYPOINT ["x"]']).cmd is None
    assert apply(config, ["CMD new", 'ENTRYPOINT ["x"]']).cmd == ["/bin/sh", "-c", "new"]


def test_no_changes_change_nothing():
    assert apply(EMPTY, []) is EMPTY


def test_what_a_container_leaves_open_is_as_in_its_image():
    image = ContainerConfig(env=["A=1", "B=2"], cmd=["c"], entrypoint=["e"], user="u", labels={"l": "1"})
    merged = merge(ContainerConfig(env=["A=9"], labels={"m": "2"}), image)
    assert merged.env == ["A=9", "B=2"]
    assert merged.labels == {"l": "1", "m": "2"}
    assert (merged.cmd, merged.entrypoint, merged.user) == (["c"], ["e"], "u")
    assert merge(ContainerConfig(entrypoint=["mine"]), image).cmd is None
