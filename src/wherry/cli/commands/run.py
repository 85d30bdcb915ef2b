"""`run` and `create`."""

from __future__ import annotations

import os

from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, UsageFailure, flush, line, out, warn
from wherry.cli.flags import Flags
from wherry.cli.run_config import Spec, build
from wherry.cli.run_flags import CREATE_FLAGS, RUN_FLAGS
from wherry.client.engine import EngineError, ProtocolError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wherry.cli.session import Session
    from wherry.client.engine import Call, Engine, Hijacked

PULL_POLICIES = ("always", "missing", "never", "")
NOT_FOUND, NOT_ALLOWED, NOT_RUN = 127, 126, 125  # exit codes


def start_failure(message: str) -> int:
    """The exit code of a start that failed, as the shell would have it."""
    lower = message.lower()
    if "executable file not found" in lower or "no such file or directory" in lower:
        return NOT_FOUND
    if "permission denied" in lower or "is a directory" in lower:
        return NOT_ALLOWED
    return NOT_RUN


def is_identifier(image: str) -> bool:
    """Can it only be an image's ID?"""
    return len(image) == 64 and set(image) <= set("0123456789abcdef")


class CIDFile:
    """Reserves the file before the container is made; takes it away again when it was not."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._written = False

    def __enter__(self) -> CIDFile:
        if self.path:
            try:
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            except FileExistsError:
                raise Failure(
                    f"container ID file found, make sure the other container isn't running or delete {self.path}",
                    NOT_RUN,
                ) from None
            except OSError as exc:
                raise Failure(
                    f"failed to create the container ID file: open {self.path}: {(exc.strerror or '').lower()}",
                    NOT_RUN,
                ) from None
        return self

    def write(self, identifier: str) -> None:
        if self.path:
            with open(self.path, "w", encoding="ascii") as file:
                file.write(identifier)
            self._written = True

    def __exit__(self, *_: object) -> None:
        if self.path and not self._written:
            os.unlink(self.path)


PROXIES = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}


def add_proxies(cli: CLI, spec: Spec) -> None:
    """The `proxies` of config.json as variables, in both cases, where the user has not set them."""
    proxies = cli.config.get("proxies")
    if not isinstance(proxies, dict):
        return
    hosts = cli.globals.texts("host")
    chosen = proxies.get(hosts[0] if hosts else cli.environ.get("DOCKER_HOST", "")) or proxies.get("default") or {}
    given = {variable.partition("=")[0] for variable in spec.config["Env"]}
    for key, name in PROXIES.items():
        if value := chosen.get(key):
            spec.config["Env"] += [f"{word}={value}" for word in (name, name.lower()) if word not in given]


def _platform(cli: CLI, flags: Flags) -> str | None:
    platform = cli.platform(flags)
    if platform:
        from wherry.cli.platforms import InvalidPlatform, parse_platform

        try:
            parse_platform(platform)
        except InvalidPlatform as exc:
            raise Failure(f"error parsing specified platform: {exc}", 125) from None
    return platform


MISSING_IMAGE = (
    "no such image",
    "does not match the specified platform",
    "does not provide the specified platform",
)


def create(cli: CLI, flags: Flags, spec: Spec) -> str:
    """Create the container, pulling the image when it is missing or when --pull says so; its ID."""
    image: str = spec.config["Image"]
    pull = flags.text("pull")
    if pull not in PULL_POLICIES:
        raise UsageFailure(f'invalid pull option: \'{pull}\': must be one of "always", "missing" or "never"', NOT_RUN)
    _check_reference(image)
    add_proxies(cli, spec)
    for server in spec.host["Dns"] or []:
        if server == "::1" or server.startswith("127."):
            warn(f"WARNING: Localhost DNS ({server}) may fail in containers.")
    if cli.engine.newer_than("1.44"):
        spec.config.pop("MacAddress", None)
    query = {"name": flags.text("name") or None, "platform": _platform(cli, flags)}
    with CIDFile(flags.text("cidfile")) as file:
        if pull == "always":
            _pull(cli, flags, image)
        try:
            created = cli.engine.post_json("/containers/create", query, spec.body())
        except EngineError as exc:
            if exc.status != 404 or pull == "never" or not _is_missing_image(exc.message, image):
                raise
            if not flags.on("quiet"):
                warn(f"Unable to find image '{_shown(image)}' locally")
            _pull(cli, flags, image)
            created = cli.engine.post_json("/containers/create", query, spec.body())
        identifier: str = created["Id"]
        file.write(identifier)
    for warning in created.get("Warnings") or []:
        warn(f"WARNING: {warning}")
    return identifier


def _check_reference(image: str) -> None:
    from wherry.cli.names import InvalidReference, parse_name

    if is_identifier(image.removeprefix("sha256:")):
        return
    try:
        parse_name(image)
    except InvalidReference as exc:
        raise Failure(str(exc), NOT_RUN) from None


def _shown(image: str) -> str:
    from wherry.cli.names import InvalidReference, parse_name

    try:
        name = parse_name(image).with_default_tag()
    except InvalidReference:
        return image
    return name.familiar + name.suffix


def _is_missing_image(message: str, image: str) -> bool:
    """A 404 may be about a network or another container, too."""
    lower = message.lower()
    return any(words in lower for words in MISSING_IMAGE) and not is_identifier(image)


def _pull(cli: CLI, flags: Flags, image: str) -> None:
    from wherry.cli.commands.pull import pull_image
    from wherry.cli.names import InvalidReference, parse_name
    from wherry.cli.progress import StreamError

    try:
        name = parse_name(image).with_default_tag()
        pull_image(cli, name, platform=cli.platform(flags), fd=2, quiet=flags.on("quiet"))
    except (InvalidReference, StreamError) as exc:
        raise Failure(str(exc), NOT_RUN) from None


def check_tty(*, stdin: bool, tty: bool) -> None:
    """A terminal cannot be given to a container when there is none here."""
    if stdin and tty and not os.isatty(0):
        raise Failure("the input device is not a TTY")


def create_command(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    line(create(cli, flags, build(flags, arguments[0], arguments[1:])))
    return 0


def run_command(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    spec = build(flags, arguments[0], arguments[1:])
    config = spec.config
    if flags.on("detach"):
        if flags.texts("attach"):
            raise Failure("conflicting options: cannot specify both --attach and --detach")
        config["AttachStdin"] = config["AttachStdout"] = config["AttachStderr"] = config["StdinOnce"] = False
    else:
        check_tty(stdin=config["AttachStdin"], tty=config["Tty"])
    if config["Tty"]:
        from wherry.cli.terminal import size_of

        rows, columns = size_of(1)
        if rows or columns:
            spec.host["ConsoleSize"] = [rows, columns]
    identifier = create(cli, flags, spec)
    if not (config["AttachStdin"] or config["AttachStdout"] or config["AttachStderr"]):
        start(cli.engine, identifier)
        line(identifier)
        return 0
    return run_attached(cli, flags, spec, identifier)


def start(engine: Engine, identifier: str, query: dict[str, str | bool | int | list[str] | None] | None = None) -> None:
    """Failure with the exit code that belongs to the reason."""
    try:
        engine.call("POST", f"/containers/{quote(identifier)}/start", query)
    except EngineError as exc:
        from wherry.cli.main import daemon_said

        raise Failure(daemon_said(exc.message), start_failure(exc.message)) from None


def attach_stream(
    engine: Engine, identifier: str, *, stdin: bool, stdout: bool, stderr: bool, detach_keys: str
) -> Hijacked:
    return engine.hijack(
        f"/containers/{quote(identifier)}/attach",
        {"stream": True, "stdin": stdin, "stdout": stdout, "stderr": stderr, "detachKeys": detach_keys or None},
    )


def ask_wait(engine: Engine, identifier: str, condition: str) -> Call:
    """The call is registered when this returns; its body comes with the exit."""
    return engine.open("POST", f"/containers/{quote(identifier)}/wait", {"condition": condition})


def exit_code_of(body: bytes) -> int:
    """From the answer to wait; what went wrong with waiting is reported and counts as 125."""
    from wherry.client.jsontext import JSONError, loads

    try:
        answer = loads(body)
    except JSONError:
        warn("Error waiting for container: unexpected end of the engine's answer")
        return NOT_RUN
    error = answer.get("Error")
    if error and error.get("Message"):
        warn(f"Error waiting for container: {error['Message']}")
        return NOT_RUN
    return int(answer.get("StatusCode") or 0)


def finish(session: Session, waiting: Call) -> int:
    """Wait for the exit, and answer with its code."""
    try:
        with waiting:
            return exit_code_of(session.await_answer(waiting))
    except ProtocolError as exc:
        warn(f"Error waiting for container: {exc}")
        return NOT_RUN


def run_attached(cli: CLI, flags: Flags, spec: Spec, identifier: str) -> int:
    """Attach and ask for the exit before the start, so that neither output nor exit can be missed."""
    from wherry.cli.session import Detached, container_session

    config = spec.config
    engine = cli.engine
    if not (config["AttachStdout"] or config["AttachStderr"]):
        out(identifier + "\n")
        flush()
    control = cli.another_engine()
    session = container_session(
        cli,
        control,
        identifier,
        tty=config["Tty"],
        stdin=config["AttachStdin"],
        detach_keys=flags.text("detach-keys"),
        sig_proxy=flags.on("sig-proxy"),
    )
    with session:
        stream = attach_stream(
            engine,
            identifier,
            stdin=config["AttachStdin"],
            stdout=config["AttachStdout"],
            stderr=config["AttachStderr"],
            detach_keys=flags.text("detach-keys") or str(cli.config.get("detachKeys") or ""),
        )
        waiting = ask_wait(engine, identifier, "removed" if flags.on("rm") else "next-exit")
        try:
            start(control, identifier)
        except Failure:
            stream.close()
            if flags.on("rm"):  # the name is to be free again when this ends
                session.await_answer(waiting)
            waiting.close()
            raise
        session.fit_window()
        try:
            session.pump(stream)
        except Detached:
            waiting.close()
            return 0
        finally:
            stream.close()
        return finish(session, waiting)


RUN_USAGE = "[OPTIONS] IMAGE [COMMAND] [ARG...]"
COMMANDS = {
    "run": Command(
        RUN_USAGE, run_command, flags=RUN_FLAGS, arguments=(1, UNLIMITED), interspersed=False, prefixed=True
    ),
    "create": Command(RUN_USAGE, create_command, flags=CREATE_FLAGS, arguments=(1, UNLIMITED), interspersed=False),
}
