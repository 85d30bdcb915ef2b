"""Command-line flags in the manner of docker (pflag): tables of Flag, parsed into Flags.

Long and short names, clusters (`-it`), values attached or apart, `--` ends them. A command whose flags are not
interspersed (`run IMAGE COMMAND --its-own-flags`) stops at its first argument.
"""

from __future__ import annotations

from wherry.cli.console import UsageFailure
from wherry.cli.units import parse_bool, parse_cpus, parse_duration, parse_float, parse_int, parse_size, parse_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Kind:
    """How a flag's value is read and what help calls it. `many` flags collect."""

    __slots__ = ("many", "parse", "shown", "zero")

    def __init__(self, shown: str, parse: Callable[[str], object], zero: object, *, many: bool = False) -> None:
        self.shown = shown
        self.parse = parse
        self.zero = zero
        self.many = many


def _csv(text: str) -> list[str]:
    return text.split(",") if text else []


def _memory_swap(text: str) -> int:
    return -1 if text == "-1" else parse_size(text)


def _filter(text: str) -> str:
    if "=" not in text:
        raise ValueError("bad format of filter (expected name=value)")
    name, _, value = text.partition("=")
    return f"{name.strip().lower()}={value.strip()}"


BOOL = Kind("", parse_bool, False)
STRING = Kind("string", str, "")
INT = Kind("int", parse_int, 0)
UINT = Kind("uint", parse_uint, 0)
UINT16 = Kind("uint16", lambda text: parse_uint(text, bits=16), 0)
FLOAT = Kind("float", parse_float, 0.0)
BYTES = Kind("bytes", parse_size, 0)
MEMORY_SWAP = Kind("bytes", _memory_swap, 0)
CPUS = Kind("decimal", parse_cpus, 0)
DURATION = Kind("duration", parse_duration, 0)
LIST = Kind("list", str, (), many=True)
MAP = Kind("map", str, (), many=True)
STRINGS = Kind("strings", _csv, (), many=True)  # commas separate too
FILTER = Kind("filter", _filter, (), many=True)


class Flag:
    """One flag. `check` turns the text of one value into what is kept, or raises ValueError.

    A flag that is another's second name keeps its values with those of the first: `same_as`.
    """

    __slots__ = ("check", "default", "help", "hidden", "kept_as", "kind", "name", "short", "shown", "since")

    def __init__(
        self,
        name: str,
        short: str,
        kind: Kind,
        help: str,
        *,
        default: object = None,
        check: Callable[[str], object] | None = None,
        shown: str | None = None,
        since: str = "",
        hidden: bool = False,
        same_as: str = "",
    ) -> None:
        self.name = name
        self.kept_as = same_as or name
        self.short = short
        self.kind = kind
        self.help = help
        self.default = kind.zero if default is None else default
        self.check = check
        self.shown = kind.shown if shown is None else shown
        self.since = since  # API version the flag needs
        self.hidden = hidden

    @property
    def label(self) -> str:
        """As messages name it: `-m, --memory`."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


class Flags:
    """The values of one parse, by long name; typed getters assert what the table promises."""

    __slots__ = ("_values", "changed")

    def __init__(self, table: Sequence[Flag]) -> None:
        self._values: dict[str, object] = {}
        for flag in table:
            self._values[flag.kept_as] = [] if flag.kind.many else flag.default
        self.changed: set[str] = set()

    def set(self, flag: Flag, value: object) -> None:
        if flag.kind.many:
            held = self._values[flag.kept_as]
            assert isinstance(held, list)
            if isinstance(value, list):
                held.extend(value)
            else:
                held.append(value)
        else:
            self._values[flag.kept_as] = value
        self.changed.add(flag.kept_as)

    def on(self, name: str) -> bool:
        value = self._values[name]
        assert isinstance(value, bool)
        return value

    def text(self, name: str) -> str:
        value = self._values[name]
        assert isinstance(value, str)
        return value

    def number(self, name: str) -> int:
        value = self._values[name]
        assert isinstance(value, int)
        return value

    def texts(self, name: str) -> list[str]:
        value = self._values[name]
        assert isinstance(value, list)
        return value

    def value(self, name: str) -> object:
        """What a flag's own `check` made; a list of them for a flag that collects."""
        return self._values[name]


HELP = Flag("help", "", BOOL, "Print usage", hidden=True)


class HelpAsked(Exception):
    """`--help` was given; `deprecated` when by -h."""

    def __init__(self, *, deprecated: bool = False) -> None:
        super().__init__()
        self.deprecated = deprecated


def parse(arguments: Sequence[str], table: Sequence[Flag], *, interspersed: bool = True) -> tuple[Flags, list[str]]:
    """Flags and the arguments left; UsageFailure in docker's words, HelpAsked for --help."""
    flags = Flags(table)
    long = {flag.name: flag for flag in table}
    short = {flag.short: flag for flag in table if flag.short}
    rest: list[str] = []
    queue = list(arguments)
    queue.reverse()
    while queue:
        argument = queue.pop()
        if argument == "--":
            rest.extend(reversed(queue))
            break
        if argument.startswith("--"):
            _parse_long(argument, long, flags, queue)
        elif argument.startswith("-") and argument != "-":
            _parse_short(argument, short, flags, queue)
        elif interspersed:
            rest.append(argument)
        else:
            rest.append(argument)
            rest.extend(reversed(queue))
            break
    return flags, rest


def _parse_long(argument: str, long: dict[str, Flag], flags: Flags, queue: list[str]) -> None:
    name, equals, value = argument[2:].partition("=")
    if not name or name.startswith("-"):
        raise UsageFailure(f"bad flag syntax: {argument}")
    flag = long.get(name)
    if flag is None:
        if name == "help":
            if not equals or assign_text(HELP, value):
                raise HelpAsked
            return
        raise UsageFailure(f"unknown flag: --{name}" + _near_miss(name, long))
    if equals:
        flags.set(flag, assign_text(flag, value))
    elif flag.kind is BOOL:
        flags.set(flag, True)
    elif queue:
        flags.set(flag, assign_text(flag, queue.pop()))
    else:
        raise UsageFailure(f"flag needs an argument: --{name}")


def _parse_short(argument: str, short: dict[str, Flag], flags: Flags, queue: list[str]) -> None:
    cluster = argument[1:]
    while cluster:
        letter, cluster = cluster[0], cluster[1:]
        flag = short.get(letter)
        if flag is None:
            if letter == "h":
                raise HelpAsked(deprecated=True)
            raise UsageFailure(f"unknown shorthand flag: '{letter}' in -{letter}{cluster}")
        if cluster.startswith("=") and len(cluster) > 1:
            flags.set(flag, assign_text(flag, cluster[1:]))
            return
        if flag.kind is BOOL:
            flags.set(flag, True)
        elif cluster:
            flags.set(flag, assign_text(flag, cluster))
            return
        elif queue:
            flags.set(flag, assign_text(flag, queue.pop()))
        else:
            raise UsageFailure(f"flag needs an argument: '{letter}' in -{letter}")


def assign_text(flag: Flag, text: str) -> object:
    """The value of `flag` in `text`."""
    try:
        value = flag.kind.parse(text)
        if flag.check is None:
            return value
        if isinstance(value, list):
            return [flag.check(item) for item in value]
        return flag.check(text)
    except ValueError as exc:
        raise UsageFailure(f'invalid argument "{text}" for "{flag.label}" flag: {exc}') from None


def _near_miss(name: str, long: dict[str, Flag]) -> str:
    from wherry.cli.suggest import nearest

    found = nearest(name, [flag.name for flag in long.values() if not flag.hidden])
    return f"\nDid you mean --{found}?" if found else ""
