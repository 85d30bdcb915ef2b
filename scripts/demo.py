"""The five steps of `run`, as a transcript on this machine: `make demo`, or `make demo SHELL_IN=1`.

Uses the daemon that answers at WHERRY_HOST (or /run/wherry.sock); when none does, starts one with roots of its own in a
temporary directory. Everything made is removed at the end, and then looked for: the exit code is 1 if anything is left.
"""

import argparse
import contextlib
import http.client
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WHERRY = REPOSITORY / ".venv/bin/wherry"
DEFAULT_HOST = "unix:///run/wherry.sock"
NAME = f"demo-{os.getpid()}"
START_TIMEOUT = 30  # s
SETTLE = 10  # s: shims and the kernel finish their clean-up after the answer
BOLD, DIM, RESET = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


class Failed(Exception):
    """A step of the demo did not work."""


def say(text: str) -> None:
    print(f"\n{BOLD}# {text}{RESET}", flush=True)


class Demo:
    def __init__(self, host: str) -> None:
        self.env = {**os.environ, "WHERRY_HOST": host, "DOCKER_HOST": host}
        self.images_before: set[str] = set()
        self.since = int(time.time())

    def show(self, *args: str, code: int = 0) -> None:
        """Run a command of ours as if it was typed."""
        print(f"{DIM}${RESET} wherry {shlex.join(args)}", flush=True)
        done = subprocess.run([str(WHERRY), *args], env=self.env, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != code:
            raise Failed(f"wherry {args[0]}: exit code {done.returncode} instead of {code}")

    def show_on_terminal(self, *args: str) -> None:
        """The same on a terminal: this one when there is one, else one made for it."""
        print(f"{DIM}${RESET} wherry {shlex.join(args)}", flush=True)
        if sys.stdin.isatty() and sys.stdout.isatty():
            code = subprocess.run([str(WHERRY), *args], env=self.env, check=False).returncode
        else:
            code = on_new_terminal([str(WHERRY), *args], self.env)
        if code:
            raise Failed(f"wherry {args[0]}: exit code {code}")

    def ask(self, *args: str) -> str:
        done = subprocess.run([str(WHERRY), *args], env=self.env, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # -- the transcript ------------------------------------------------------------------------------------------------

    def bootstrap(self, image: str) -> None:
        say(f"A base image, made from this machine's own packages: {image}")
        self.show("image", "bootstrap", image)
        self.show("images", image)

    def five_steps(self) -> None:
        say("A container: files on the image's layers, an address on the bridge, a process on a terminal")
        script = 'cat /kept 2>/dev/null; echo "hello from $(hostname), terminal $(stty size)"'
        script += "; ip -4 -o addr show eth0; echo written before > /kept"
        self.show_on_terminal("run", "-i", "-t", "--name", NAME, "busybox", "sh", "-c", script)
        say("It has ended, and is still there with what it wrote; started again, it finds it")
        self.show("ps", "-a", "--filter", f"name={NAME}")
        self.show("diff", NAME)
        self.show_on_terminal("start", "-a", "-i", NAME)
        say("The image is untouched: a second container starts from it, without copying anything")
        self.show("run", "--rm", "busybox", "ls", "/kept", code=1)
        say("A server, reached through a published port")
        serve = "echo 'served from a container' > /index.html; exec httpd -f -p 80 -h /"
        self.show("run", "-d", "--name", f"{NAME}-web", "-p", "127.0.0.1::80", "busybox", "sh", "-c", serve)
        address = self.ask("port", f"{NAME}-web", "80").splitlines()[0]
        print(f"{DIM}${RESET} curl http://{address}/\n{fetch(f'http://{address}/')}", end="", flush=True)
        say("Look inside, stop, remove")
        self.show("exec", f"{NAME}-web", "ps")
        self.show("stop", "-t", "1", f"{NAME}-web")
        self.show("rm", NAME, f"{NAME}-web")

    def shell(self, image: str) -> None:
        say("You are in the container; `exit` ends it")
        program = "/bin/bash" if image == "debian" else "sh"
        with contextlib.suppress(Failed):  # the shell's exit code is the user's own
            self.show_on_terminal("run", "-i", "-t", "--rm", "--name", f"{NAME}-shell", image, program)

    def remove(self) -> list[str]:
        """Containers and images of the demo, whether or not it came to its end. Returns the ids there were."""
        made = ["--filter", "type=container", "--filter", "event=create", "--format", "{{.Actor.ID}}"]
        ids = self.ask("events", "--since", str(self.since), "--until", str(int(time.time()) + 1), *made).split()
        mine = [name for name in self.ask("ps", "-aq", "--filter", f"name={NAME}").split() if name]
        if mine:
            self.ask("rm", "-f", "-v", *mine)
        for image in set(self.ask("images", "--format", "{{.Repository}}:{{.Tag}}").split()) - self.images_before:
            self.ask("rmi", "-f", image)
        return ids


def on_new_terminal(argv: Sequence[str], env: dict[str, str]) -> int:
    pid, master = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (24, 80))
        os.execve(argv[0], list(argv), env)
    with contextlib.suppress(OSError):  # EIO is the end of a terminal
        while data := os.read(master, 4096):
            sys.stdout.buffer.write(data.replace(b"\r\n", b"\n"))
            sys.stdout.flush()
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fetch(url: str) -> str:
    until = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(url, timeout=3) as answer:
                return str(answer.read().decode())
        except OSError as error:
            if time.monotonic() > until:
                raise Failed(f"{url}: {error}") from None
            time.sleep(0.05)


# -- the daemon --------------------------------------------------------------------------------------------------------


def answers(host: str) -> bool:
    connection = http.client.HTTPConnection("wherry")
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(host.removeprefix("unix://"))
        connection.request("GET", "/_ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def daemon(root: Path) -> Iterator[str]:
    """A daemon of our own below `root`; yields where it listens, and ends with it gone."""
    host = f"unix://{root}/wherry.sock"
    log = root / "daemon.log"
    argv = [str(WHERRY), "daemon", "-H", host, "--data-root", f"{root}/data", "--exec-root", f"{root}/run"]
    argv += ["--pidfile", f"{root}/daemon.pid"]
    say("No daemon is running: starting one with roots of its own")
    print(f"{DIM}${RESET} {shlex.join(argv).replace(str(REPOSITORY) + '/', '')} &", flush=True)
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        until = time.monotonic() + START_TIMEOUT
        while not answers(host):
            if process.poll() is not None or time.monotonic() > until:
                raise Failed(f"the daemon did not start:\n{log.read_text()}")
            time.sleep(0.02)
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- what is left ------------------------------------------------------------------------------------------------------


def traces(root: Path, containers: Collection[str] = ()) -> set[str]:
    """What a daemon could leave on this machine. Other daemons may be at work: only what may be of ours counts."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = {f"mount {line.split()[4]}" for line in lines if str(root) in line}
    links = [line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    found |= {f"interface {link}" for link in links if link.startswith(("wh", "veth"))}
    groups = Path("/sys/fs/cgroup")
    for folder in [groups, *(path for path in groups.glob("*") if path.is_dir())]:
        found |= {f"cgroup {path}" for path in (folder / "wherry").glob("*/") if path.name in containers}
    if nft := shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        done = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, check=False)
        found |= {f"nft {line}" for line in done.stdout.splitlines() if "wherry" in line}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(root) in words or re.search(rf"\b{NAME}\b", words):
                    found.add(f"process {entry.name}: {words.strip()}")
    return found


def leftovers(before: set[str], root: Path, containers: Collection[str]) -> set[str]:
    until = time.monotonic() + SETTLE
    while (left := traces(root, containers) - before) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shell", action="store_true", help="end in a shell in a Debian container")
    wanted = options.parse_args()
    host = os.environ.get("WHERRY_HOST", DEFAULT_HOST)
    root = Path(tempfile.mkdtemp(prefix="wherry-demo-", dir="/tmp"))
    before = traces(root)
    failure = ""
    containers: set[str] = set()
    try:
        with contextlib.ExitStack() as stack:
            demo = Demo(host if answers(host) else stack.enter_context(daemon(root)))
            stack.callback(lambda: containers.update(demo.remove()))
            demo.images_before = set(demo.ask("images", "--format", "{{.Repository}}:{{.Tag}}").split())
            run(demo, shell=wanted.shell)
    except Failed as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    finally:
        shutil.rmtree(root, ignore_errors=True)
    left = leftovers(before, root, containers)
    if failure:
        print(f"\nwherry demo: {failure}", file=sys.stderr)
    for trace in sorted(left):
        print(f"left behind: {trace}", file=sys.stderr)
    if not failure and not left:
        say("Cleaned up: no mount, interface, rule, cgroup or process is left")
    return 1 if failure or left else 0


def run(demo: Demo, *, shell: bool) -> None:
    if not shell:
        demo.bootstrap("busybox")
        demo.five_steps()
        return
    try:
        demo.bootstrap("debian")
        demo.shell("debian")
    except Failed as error:
        print(f"{error}\nDebian's packages cannot be fetched here: busybox instead", flush=True)
        demo.bootstrap("busybox")
        demo.shell("busybox")


if __name__ == "__main__":
    sys.exit(main())
