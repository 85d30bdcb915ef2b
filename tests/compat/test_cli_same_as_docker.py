"""The same command lines by `docker` and by `wherry` against one daemon: same output, same errors, same exit code.

What may differ is taken out first: the program's name, identifiers made by the call, and times.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.engine import Cli, Engine
from harness.same import both, comparable


@pytest.fixture
def world(engine: Engine) -> Iterator[Engine]:
    """Two containers, a volume, and a network where the engine makes networks, to look at."""
    made = engine.docker("network", "create", "--label", "a=b", "clinet", check=False)
    engine.docker("volume", "create", "clivol")
    engine.docker(
        "run", "-d", "--name", "one", "-p", "18080:80", "-p", "19000-19001:9000-9001/udp", "--label", "x=y", "-v",
        "clivol:/data", "busybox", "sh", "-c", "echo out; echo err >&2; exec sleep 1000",
    )  # fmt: skip
    engine.docker("create", "--name", "two", "--network", "clinet" if made.code == 0 else "none", "busybox", "true")
    yield engine
    engine.remove_all_containers()
    if made.code == 0:
        engine.docker("network", "rm", "clinet")


MISTAKES = [
    "run", "run --bogus x", "run -Z x", "run --name", "run -m", "run -m 4q busybox", "run -p abc busybox",
    "run -p 99999:80 busybox", "run -p 80-90:80-85 busybox", "run -p 1.2.3:80:80 busybox", "run -p 80/foo busybox",
    "run -v /a:/b:zz:/c busybox", "run --mount type=bind busybox", "run --mount foo busybox",
    "run --mount type=bind,foo=bar busybox", "ps a", "rm", "ps --format", "ps --last=x", "ps --size=maybe",
    "ps -f foo", "run --cpus x busybox", "run --ulimit x busybox", "run --env-file /nonexist busybox",
    "run -it --rm busybox", "run -d -a stdout busybox", "run -d --rm --restart always busybox",
    "run --health-cmd x --no-healthcheck busybox", "run --memory-swappiness 200 busybox", "run -e =x busybox",
    "run --mac-address zz busybox", "run --sysctl foo busybox", "run --device /a:/b:zz busybox",
    "run --add-host foo busybox", "run --add-host foo:x busybox", "run --dns foo busybox", "run --gpus foo=1 busybox",
    "run --gpus x busybox", "run --link a:b:c busybox", "run --blkio-weight-device foo busybox",
    "run --log-driver none --log-opt foo=bar busybox", "run --pid foo busybox", "run --uts foo busybox",
    "run --userns foo busybox", "run --cgroupns foo busybox", "run --security-opt foo busybox",
    "run --security-opt seccomp=/nonexist busybox", "run --expose foo busybox", "run --shm-size -1 busybox",
    "run --health-interval 5 busybox", "run --attach foo busybox", "run --label-file /x busybox",
    "run --pids-limit x busybox", "run --net none --network-alias x busybox", "run --pull bogus busybox", "run Foo",
    "create --pull bogus busybox", "volume create a b", "images a b", "inspect", "tag a", "exec a", "port a b c",
    "cp a", "cp a b", "cp a:b c:d", "network connect a", "attach", "commit", "login a b", "events --since x",
    "help bogus", "inspect -f {{ x", "inspect -f {{foo}} x", "start -a x y", "pull Foo", "pull foo@bar", "save",
    "import nope", "load -i /nonexist", "login -u x", "update nope", "system prune --volumes --filter until=1h",
    "-l foo ps", "-H foo://x ps", "network create --subnet 10.9.0.0/24 --gateway 10.8.0.1 n", "tag busybox B",
]  # fmt: skip


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told_in_the_same_words(engine: Engine, line: str) -> None:
    both(engine, *line.split(" "))


MISSING = [
    "rm nope", "rm -f nope", "rm nope nope2", "stop nope", "kill nope", "start nope", "start nope nope2",
    "start -a nope", "restart nope", "pause nope", "unpause nope", "wait nope", "rename nope x1", "top nope",
    "port nope", "diff nope", "logs nope", "attach nope", "exec nope x", "export nope", "commit nope", "inspect nope",
    "container inspect nope", "image inspect nope", "network inspect nope", "volume inspect nope", "history nope",
    "rmi nope", "rmi -f nope", "tag nope x", "save nope", "push nope", "volume rm nope", "network rm nope",
    "network rm -f nope", "update --memory 10m nope", "cp nope:/x /tmp", "cp /etc/passwd nope:/x",
    "run --volumes-from nope busybox", "create --pull never nope", "run --pull never nope",
    "run --network nope busybox true",
]  # fmt: skip


@pytest.mark.parametrize("line", MISSING)
def test_what_is_not_there_is_told_in_the_same_words(engine: Engine, line: str) -> None:
    both(engine, *line.split(" "), changing="run" in line)


LOOKS = [
    "ps", "ps -a", "ps -aq", "ps -aq --no-trunc", "ps -a --no-trunc", "ps -as", "ps -l", "ps -n 1", "ps -f name=one",
    "ps -a -f status=created", "ps -q --format {{.ID}}", "ps -a --format json", "ps -a --format {{.Names}}:{{.Ports}}",
    "ps -a --format table", "ps --format {{.Foo}}", "images", "images -a", "images -q", "images --digests",
    "images busybox", "images nope", "images --format {{.Repository}}:{{.Tag}}", "images --format json",
    "images --no-trunc", "port one", "port one 80", "port one 81", "port one 9000/udp", "port two", "diff one",
    "logs one", "logs -n 1 one", "inspect one", "inspect one two", "inspect one nope", "inspect busybox",
    "inspect clinet", "inspect clivol", "inspect -s one", "inspect -f {{.Name}} one two", "inspect -f {{.Foo}} one",
    "inspect -f {{.State.Running}}{{.HostConfig.Memory}} one", "inspect -f json two", "inspect --type image one",
    "container inspect two", "network inspect clinet", "network ls", "network ls -q", "network ls --no-trunc",
    "network ls -f driver=host", "volume ls", "volume ls -q", "volume ls --format json", "volume inspect clivol",
    "history busybox", "history --no-trunc busybox", "history -q busybox", "history --format {{.ID}} busybox",
    "history -H=false busybox", "system df", "system df --format json", "info -f {{.Name}}",
    "version -f {{.Server.Version}}", "top one", "container ls -a", "image ls -q", "container list -q",
]  # fmt: skip


def test_looking_shows_the_same(world: Engine) -> None:
    for line in LOOKS:
        both(world, *line.split(" "), changing=True)
    both(
        world, "ps", "-a", "--format", 'table {{.ID}}\t{{upper .Names}}\t{{json .Ports}}\t{{.Label "x"}}', changing=True
    )
    both(world, "inspect", "-f", "{{range $p, $b := .NetworkSettings.Ports}}{{$p}}={{$b}};{{end}}", "one")
    both(world, "inspect", "-f", '{{index .Config.Labels "x"}} {{json .Mounts}} {{.Config.Env}}', "one")
    both(world, "events", "--since", "1h", "--until", "0s", "-f", "container=one", changing=True)
    both(world, "events", "--since", "1h", "--until", "0s", "--format", "{{.Type}} {{.Action}}", changing=True)


def test_running_ends_the_same(engine: Engine) -> None:
    for line in (
        "run --rm busybox echo hi", "run --rm busybox false", "run busybox nope", "run busybox /etc",
        "run --rm -w relative busybox", "run --rm --ipc foo busybox true", "run --rm --tmpfs /x:foo busybox true",
        "run --rm --log-opt foo=bar busybox true", "run --rm --restart foo busybox true",
        "run --rm --name - busybox true", "run --rm -e A=1 -w /tmp busybox env",
        "run --rm --cidfile /etc/passwd busybox", "run --rm --read-only busybox touch /x",
        "run --rm --entrypoint echo busybox a b", "run --rm --help=false busybox true",
    ):  # fmt: skip
        both(engine, *line.split(" "), changing=True)
    both(engine, "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    both(engine, "run", "--rm", "busybox", "sh", "-c", "kill -9 $$")
    both(engine, "run", "--rm", "-i", "busybox", "wc", "-c", input="x" * 1_000_000)
    both(engine, "create", "busybox", changing=True)


def test_a_container_s_life_is_told_the_same(world: Engine) -> None:
    by = {"docker": world.docker, "wherry": world.wherry}
    told: dict[str, list[tuple[int, str, str]]] = {name: [] for name in by}
    for name, cli in by.items():
        for line in (
            "run -d --name life busybox sleep 1000", "run -d --name life busybox", "pause life", "pause life",
            "ps -f name=life", "exec life true", "unpause life", "rename life life2", "restart -t 0 life2",
            "update --memory 100m --memory-swap 200m life2", "exec life2 sh -c exit\t4", "exec life2 nope",
            "exec -e A=1 -w /tmp life2 env", "exec -d life2 touch /made", "kill -s FOO life2", "rm life2",
            "stop -t 0 life2 nope", "ps -a -f name=life", "start life2", "kill life2", "wait life2", "attach life2",
            "commit life2 life:1", "tag life:1 life:2", "rmi life:1 life:2", "rm life2", "rm life2",
            "network create clinet2", "network create clinet2", "network connect clinet2 two",
            "network disconnect clinet2 two", "network rm clinet2", "volume create v9", "volume rm v9",
            "volume rm clivol", "container prune -f --filter label=nothing", "volume prune", "system prune",
        ):  # fmt: skip
            arguments = [word.replace("\t", " ") for word in line.split(" ")]
            told[name].append((*comparable(cli(*arguments, check=False), changing=True), line))  # type: ignore[arg-type]
    for expected, got in zip(told["docker"], told["wherry"], strict=True):
        assert got == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["{src}", "one:/w"], ["{src}", "one:/w/new"], ["{src}/.", "one:/w"], ["{src}/.", "one:/w/new"],
        ["{src}/a", "one:/w"], ["{src}/a", "one:/w/x"], ["{src}/a", "one:/w/d/"], ["{src}/a", "one:/nope/x"],
        ["{src}/nope", "one:/w"], ["{src}/l", "one:/w"], ["-L", "{src}/l", "one:/w"], ["one:/etc", "{out}"],
        ["one:/etc", "{out}/new"], ["one:/etc/.", "{out}"], ["one:/etc/.", "{out}/new"], ["one:/etc/passwd", "{out}"],
        ["one:/etc/passwd", "{out}/p"], ["one:/etc/passwd", "{out}/q/"], ["one:/nope", "{out}"],
        ["one:/etc", "{src}/a"], ["one:/bin/sh", "{out}"], ["-L", "one:/bin/sh", "{out}"], ["one:/etc", "{out}/x/y/z"],
    ],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_copies_land_in_the_same_place(world: Engine, tmp_path: Path, arguments: list[str]) -> None:
    results = []
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_text("1")
    (source / "sub" / "b").write_text("2")
    (source / "l").symlink_to("a")
    for cli in (world.docker, world.wherry):
        out = tmp_path / "out"
        out.mkdir()
        world.docker("exec", "one", "sh", "-c", "rm -rf /w; mkdir -p /w/d")
        done = cli("cp", *(word.format(src=source, out=out) for word in arguments), check=False)
        found = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
        there = world.docker("exec", "one", "sh", "-c", "cd /w && find . | sort").lines
        results.append((comparable(done, changing=False), found, there))
        shutil.rmtree(out)
    assert results[1] == results[0]


def test_a_terminal_is_used_and_given_back_the_same(engine: Engine) -> None:
    ends = []
    for cli in (engine.docker, engine.wherry):
        with cli.terminal("run", "-it", "--rm", "busybox", "sh", rows=31, cols=97) as terminal:
            before = terminal.modes()
            terminal.expect("# ")
            terminal.line("stty size")
            terminal.expect("31 97")
            terminal.resize(40, 120)
            terminal.line("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo re''sized")
            terminal.expect("resized")
            terminal.line("exit 7")
            ends.append((terminal.wait(), terminal.modes() == before))
    assert ends == [(7, True), (7, True)]


@pytest.mark.parametrize("name", ["docker", "wherry"])
def test_leaving_by_the_detach_keys_and_coming_back(engine: Engine, name: str) -> None:
    cli: Cli = getattr(engine, name)
    with cli.terminal("run", "-it", "--name", "left", "busybox", "sh") as terminal:
        before = terminal.modes()
        terminal.expect("# ")
        terminal.send(b"\x10\x11")
        assert terminal.wait() == 0
        assert terminal.modes() == before
    assert engine.state("left")["Running"]
    with cli.terminal("exec", "-it", "--detach-keys", "ctrl-x,x", "left", "sh") as terminal:
        terminal.expect("# ")
        terminal.send(b"\x18x")
        assert terminal.wait() == 1
        assert "read escape sequence" in terminal.screen
    with cli.terminal("attach", "left") as terminal:
        terminal.expect("# ")
        terminal.line("exit 5")
        assert terminal.wait() == 5


@pytest.mark.parametrize("name", ["docker", "wherry"])
def test_control_c_reaches_the_container(engine: Engine, name: str) -> None:
    cli: Cli = getattr(engine, name)
    script = 'trap "echo caught; exit 9" INT; echo ready; while true; do sleep 0.1; done'
    with cli.terminal("run", "--rm", "busybox", "sh", "-c", script) as terminal:
        terminal.expect("ready")
        terminal.send(b"\x03")
        terminal.expect("caught")
        assert terminal.wait() == 9


def test_following_logs_ends_with_control_c(world: Engine) -> None:
    for cli in (world.docker, world.wherry):
        with cli.terminal("logs", "-f", "one") as terminal:
            terminal.expect("err")
            terminal.send(b"\x03")
            with contextlib.suppress(AssertionError):  # once in many a first one was lost on a loaded machine
                terminal.wait(timeout=5)
            if terminal.process.poll() is None:
                terminal.send(b"\x03")
            assert terminal.wait() == 130
