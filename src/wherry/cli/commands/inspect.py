"""`inspect`, of anything or of one kind of object."""

from __future__ import annotations

from wherry.cli.batch import describe
from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, line, out, warn
from wherry.cli.flags import BOOL, STRING, Flag, Flags
from wherry.cli.listing import INSPECT_FORMAT_HELP, compile_template
from wherry.cli.platforms import platform_query
from wherry.client import jsontext
from wherry.client.engine import EngineError, ProtocolError, Unreachable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wherry.cli.template import Template

KINDS = ("container", "image", "network", "volume")
ELSEWHERE = ("config", "node", "plugin", "secret", "service", "task")  # kinds this engine does not have

FORMAT = Flag("format", "f", STRING, INSPECT_FORMAT_HELP)
SIZE = Flag("size", "s", BOOL, "Display total file sizes if the type is container")


def fetch(cli: CLI, kind: str, name: str, flags: Flags, *, platform: str | None = None) -> bytes:
    """The engine's own text about the object; `platform` is an image's."""
    engine = cli.engine
    if kind == "container":
        return engine.call("GET", f"/containers/{quote(name)}/json", {"size": flags.on("size")})
    if kind == "image":
        return engine.call("GET", f"/images/{quote(name, safe=b'/:@')}/json", {"platform": platform})
    if kind == "network":
        return engine.call("GET", f"/networks/{quote(name)}", {"verbose": flags.on("verbose")})
    return engine.call("GET", f"/volumes/{quote(name)}")


def fetch_any(cli: CLI, name: str, flags: Flags) -> bytes:
    """The first kind of object that has the name; Failure when none has."""
    for kind in KINDS:
        try:
            return fetch(cli, kind, name, flags)
        except EngineError as exc:
            if exc.status not in (400, 404):  # 400: the name could not be one of this kind
                raise
    raise Failure(f"Error: No such object: {name}")


def show(name_list: list[str], form: str, get: Callable[[str], bytes]) -> int:
    """Print all that were found, then what went wrong with the others."""
    template = compile_template(form) if form not in ("", "json") else None
    found: list[str] = []
    failures: list[str] = []
    for name in name_list:
        try:
            data = get(name)
        except (EngineError, ProtocolError, Unreachable) as exc:
            failures.append(describe(exc))
            if isinstance(exc, Unreachable):
                break
            continue
        except Failure as failure:
            failures.append(failure.message)
            continue
        if template is not None:
            _show_one(template, data)
        else:
            found.append(data.decode("utf-8", "replace").strip())
    if template is None:
        text = "[" + ",".join(found) + "]"
        line(text if form == "json" else jsontext.indent(text))
    for failure_text in failures:
        warn(failure_text)
    return 1 if failures else 0


def _show_one(template: Template, data: bytes) -> None:
    from wherry.cli.template import TemplateError

    try:
        out(template.render(jsontext.loads(data)) + "\n")
    except TemplateError as exc:
        out("\n")
        raise Failure(f"template parsing error: {exc}") from None


def run_any(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    kind = flags.text("type")
    if "type" in flags.changed and not kind:
        raise Failure(
            'type is empty: must be one of "config", "container", "image", "network", "node", "plugin",'
            ' "secret", "service", "task", "volume"'
        )
    if kind in ELSEWHERE:
        raise Failure(f"Error: this engine has no objects of type {kind}")
    if kind and kind not in KINDS:
        raise Failure(
            f'unknown type: "{kind}": must be one of "config", "container", "image", "network", "node",'
            ' "plugin", "secret", "service", "task", "volume"'
        )
    if kind:
        return show(arguments, flags.text("format"), lambda name: fetch(cli, kind, name, flags))
    return show(arguments, flags.text("format"), lambda name: fetch_any(cli, name, flags))


def _one_kind(kind: str) -> Callable[[CLI, Flags, list[str]], int]:
    def run(cli: CLI, flags: Flags, arguments: list[str]) -> int:
        return show(arguments, flags.text("format"), lambda name: fetch(cli, kind, name, flags))

    return run


def run_image(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    platform = platform_query(flags.text("platform"), complaint="")
    form = flags.text("format")
    return show(arguments, form, lambda name: fetch(cli, "image", name, flags, platform=platform))


VERBOSE = Flag("verbose", "v", BOOL, "Verbose output for diagnostics")
HIDDEN_VERBOSE = Flag("verbose", "", BOOL, "", hidden=True)
HIDDEN_SIZE = Flag("size", "", BOOL, "", hidden=True)

COMMANDS = {
    "inspect": Command(
        "[OPTIONS] NAME|ID [NAME|ID...]",
        run_any,
        flags=(FORMAT, SIZE, Flag("type", "", STRING, "Only inspect objects of the given type"), HIDDEN_VERBOSE),
        arguments=(1, UNLIMITED),
    ),
    "container": Command(
        "[OPTIONS] CONTAINER [CONTAINER...]",
        _one_kind("container"),
        flags=(FORMAT, Flag("size", "s", BOOL, "Display total file sizes"), HIDDEN_VERBOSE),
        arguments=(1, UNLIMITED),
    ),
    "image": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        run_image,
        flags=(
            FORMAT,
            Flag(
                "platform",
                "",
                STRING,
                "Inspect a specific platform of the multi-platform image.\n"
                "If the image or the server is not multi-platform capable, the command will error out if the platform "
                "does not match.\n"
                "'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)",
                since="1.49",
            ),
            HIDDEN_SIZE,
            HIDDEN_VERBOSE,
        ),
        arguments=(1, UNLIMITED),
    ),
    "network": Command(
        "[OPTIONS] NETWORK [NETWORK...]",
        _one_kind("network"),
        flags=(FORMAT, VERBOSE, HIDDEN_SIZE),
        arguments=(1, UNLIMITED),
    ),
    "volume": Command(
        "[OPTIONS] VOLUME [VOLUME...]",
        _one_kind("volume"),
        flags=(FORMAT, HIDDEN_SIZE, HIDDEN_VERBOSE),
        arguments=(1, UNLIMITED),
    ),
}
