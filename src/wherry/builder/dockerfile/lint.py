"""Build checks over a whole Dockerfile, without building anything: what docker's `--check` finds. Pure.

Values are those of build arguments and defaults. What base images set is told by the caller, as far as it knows: where
it does not, a variable is only called undefined when it looks like a misspelled one.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from wherry.builder.dockerfile import rules
from wherry.builder.dockerfile.errors import DockerfileError, located, quoted, shortened
from wherry.builder.dockerfile.ignore import Patterns
from wherry.builder.dockerfile.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Run,
    Shell,
    StopSignal,
    Transfer,
    User,
    Volume,
    Workdir,
)
from wherry.builder.dockerfile.parser import Heredoc, Node
from wherry.builder.dockerfile.rules import Checks, Finding, Rule, parse_checks
from wherry.builder.dockerfile.stages import Dockerfile, Stage
from wherry.builder.dockerfile.suggest import near
from wherry.builder.dockerfile.words import expand
from wherry.builder.graph import Location, Range
from wherry.errors import InvalidParameter
from wherry.reference import parse as parse_reference
from wherry.spec.image import parse_platform

PREDEFINED = tuple(
    f"{side}{what}" for side in ("TARGET", "BUILD") for what in ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT")
)
RESERVED_NAMES = frozenset({"context", "scratch"})

_SECRET = re.compile(
    r"(?:_|\A)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|\Z)", re.IGNORECASE
)
_NO_SECRET = re.compile(r"(?:_|\A)(?:public|file|version)(?:_|\Z)", re.IGNORECASE)
_UNCHECKED = frozenset({"BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"})
_ROOTS = ("", ".", "/")
_EVERYTHING = frozenset({"*", "**", "**/*"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What is known of the image a stage begins with."""

    env: Mapping[str, str] = field(default_factory=dict)
    shell: bool = False  # its config has a Shell


def checks_of(dockerfile: Dockerfile, argument: str = "") -> Checks:
    """Of the build argument BUILDKIT_DOCKERFILE_CHECK if it is given, else of `# check=`. Raises DockerfileError."""
    directive = dockerfile.parsed.directives.get("check")
    if argument:
        return parse_checks(argument)
    if directive is None:
        return Checks()
    with located(dockerfile.parsed.line(directive.line)):
        return parse_checks(directive.value)


def lint(
    dockerfile: Dockerfile,
    *,
    checks: Checks,
    build_args: Mapping[str, str] | None = None,
    bases: Mapping[int, Base] | None = None,
    ignore: Patterns | None = None,
) -> list[Finding]:
    """What is found, in the order of the lines. `bases` is by stage number."""
    linter = _Linter(dockerfile, build_args or {}, bases or {}, ignore)
    wanted = [finding for finding in linter.run() if checks.wants(finding.rule)]
    return sorted(wanted, key=lambda finding: finding.line)


@dataclass(slots=True)
class _Scope:
    """What is set at a point of a stage."""

    env: dict[str, str] = field(default_factory=dict)
    known: bool = True  # all of it: no base image may have set more
    shell: bool = False
    workdir: bool = False  # an absolute one was set

    def child(self) -> "_Scope":
        return replace(self, env=dict(self.env))


class _Linter:
    def __init__(
        self,
        dockerfile: Dockerfile,
        build_args: Mapping[str, str],
        bases: Mapping[int, Base],
        ignore: Patterns | None,
    ) -> None:
        self._file = dockerfile
        self._escape = dockerfile.parsed.escape
        self._build_args = build_args
        self._bases = bases
        self._ignore = ignore
        self._globals: dict[str, str | None] = {}  # with build arguments
        self._defaults: dict[str, str] = {}  # without
        self._scopes: list[_Scope] = []  # at the end of each stage

    def run(self) -> Iterator[Finding]:
        for node in self._file.parsed.instructions:
            yield from _of_node(node)
        yield from self._casing()
        for arg in self._file.args:
            self._read_globals(arg)
            yield from _described(arg, [pair.name for pair in arg.args])
        seen: set[str] = set()
        for stage in self._file.stages:
            yield from self._start(stage, seen)
            yield from self._stage(stage)

    # --- the whole file -----------------------------------------------------------------------------------------------

    def _casing(self) -> Iterator[Finding]:
        nodes = [instruction.node for stage in self._file.stages for instruction in (stage.start, *stage.instructions)]
        lower = sum(node.spelled.islower() for node in nodes)
        upper = sum(node.spelled.isupper() for node in nodes)
        wanted = "lowercase" if lower > upper else "uppercase"
        for node in nodes:
            if node.spelled != (node.spelled.lower() if lower > upper else node.spelled.upper()):
                message = f"Command '{node.spelled}' should match the case of the command majority ({wanted})"
                yield _found(rules.CONSISTENT_INSTRUCTION_CASING, message, node.location)

    def _read_globals(self, arg: Arg) -> None:
        for pair in arg.args:
            given = self._build_args.get(pair.name)
            if pair.default is None:
                self._globals[pair.name] = given
                continue
            set_ = {name: value for name, value in self._globals.items() if value is not None}
            self._globals[pair.name] = given if given is not None else self._text(pair.default, set_)
            self._defaults[pair.name] = self._text(pair.default, self._defaults)

    def _text(self, text: str, env: Mapping[str, str]) -> str:
        """Expanded; errors are told by whoever builds the stage."""
        try:
            return expand(text, env, escape=self._escape).text
        except DockerfileError:
            return ""

    # --- FROM ---------------------------------------------------------------------------------------------------------

    def _start(self, stage: Stage, seen: set[str]) -> Iterator[Finding]:
        start, place = stage.start, stage.location
        if stage.name:
            if stage.name in RESERVED_NAMES:
                message = f"Stage name should not use the same name as reserved stage {quoted(stage.name)}"
                yield _found(rules.RESERVED_STAGE_NAME, message, place)
            if stage.name in seen:
                message = f"Duplicate stage name {quoted(stage.name)}, stage names should be unique"
                yield _found(rules.DUPLICATE_STAGE_NAME, message, place)
            if start.stage_spelled != stage.name:
                message = f"Stage name '{start.stage_spelled}' should be lowercase"
                yield _found(rules.STAGE_NAME_CASING, message, place)
            yield from _as_casing(start)
            yield from _described(start, [stage.name, start.stage_spelled])
        yield from self._from_variables(stage)
        yield from self._from_platform(stage)
        seen.add(stage.name)

    def _from_variables(self, stage: Stage) -> Iterator[Finding]:
        env = {name: value or "" for name, value in self._globals.items()}
        known = {**dict.fromkeys(PREDEFINED, ""), **env}
        for text in (stage.base, stage.platform):
            for name in sorted(self._missed(text, known)):
                suggestion = near(name, known)
                hint = f" (did you mean {suggestion}?)" if suggestion else ""
                message = f"FROM argument '{shortened(name)}' is not declared{hint}"
                yield _found(rules.UNDEFINED_ARG_IN_FROM, message, stage.location)
        if "$" in stage.base and not self._usable(self._text(stage.base, self._defaults)):
            message = f"Default value for ARG {shortened(stage.base)} results in empty or invalid base image name"
            yield _found(rules.INVALID_DEFAULT_ARG_IN_FROM, message, stage.location)

    def _usable(self, base: str) -> bool:
        try:
            parse_reference(base)
        except InvalidParameter:
            return False
        return True

    def _from_platform(self, stage: Stage) -> Iterator[Finding]:
        platform = stage.platform
        if platform in ("$TARGETPLATFORM", "${TARGETPLATFORM}"):
            message = f"Setting platform to predefined {platform} in FROM is redundant as this is the default behavior"
            yield _found(rules.REDUNDANT_TARGET_PLATFORM, message, stage.location)
        if not platform or "$" in platform:
            return
        try:
            parsed = parse_platform(platform)
        except InvalidParameter:
            return  # an error when the stage is built
        if parsed.os not in stage.name and parsed.architecture not in stage.name:
            message = f"FROM --platform flag should not use constant value {quoted(platform)}"
            yield _found(rules.FROM_PLATFORM_FLAG_CONST_DISALLOWED, message, stage.location)

    # --- a stage ------------------------------------------------------------------------------------------------------

    def _scope(self, stage: Stage) -> _Scope:
        """At the beginning of the stage."""
        known = {name: value or "" for name, value in self._globals.items()}
        base = self._text(stage.base, known)
        for before in reversed(self._file.stages[: stage.number]):
            if before.name and before.name == base.lower():
                return self._scopes[before.number].child()
        path = {"PATH": ""}
        if base.lower() == "scratch":
            return _Scope(env=path)
        image = self._bases.get(stage.number)
        if image is None:
            return _Scope(env=path, known=False)
        return _Scope(env={**path, **image.env}, shell=image.shell)

    def _stage(self, stage: Stage) -> Iterator[Finding]:
        scope = self._scope(stage)
        once: dict[type[Instruction], Instruction] = {}
        for instruction in stage.instructions:
            yield from self._variables(instruction, scope)
            yield from self._values(instruction, scope)
            if isinstance(instruction, Cmd | Entrypoint | Healthcheck):
                yield from _used_once(instruction, once)
            if isinstance(instruction, Cmd | Entrypoint) and instruction.shell and not scope.shell:
                message = (
                    f"JSON arguments recommended for {instruction.node.spelled} to prevent unintended behavior related "
                    "to OS signals"
                )
                yield _found(rules.JSON_ARGS_RECOMMENDED, message, instruction.location)
            if isinstance(instruction, Copy | Add):
                yield from self._ignored(instruction, scope)
            self._follow(instruction, scope)
        self._scopes.append(scope)

    def _variables(self, instruction: Instruction, scope: _Scope) -> Iterator[Finding]:
        """Those that are used and not set."""
        missed: set[str] = set()
        for text in _expanded_texts(instruction):
            missed |= self._missed(text, scope.env)
        for name in sorted(missed - _UNCHECKED):
            suggestion = near(name, scope.env)
            if scope.known or suggestion:
                hint = f" (did you mean ${suggestion}?)" if suggestion else ""
                message = f"Usage of undefined variable '${shortened(name)}'{hint}"
                yield _found(rules.UNDEFINED_VAR, message, instruction.location)

    def _missed(self, text: str, env: Mapping[str, str]) -> frozenset[str]:
        try:
            return expand(text, env, escape=self._escape).missed
        except DockerfileError:
            return frozenset()

    def _values(self, instruction: Instruction, scope: _Scope) -> Iterator[Finding]:
        place = instruction.location
        match instruction:
            case Maintainer():
                message = "Maintainer instruction is deprecated in favor of using label"
                yield _found(rules.MAINTAINER_DEPRECATED, message, place)
            case Arg(args=args):
                yield from _described(instruction, [pair.name for pair in args])
                yield from _secrets(instruction, [pair.name for pair in args])
            case Env(pairs=pairs):
                yield from _legacy(instruction, legacy=pairs[0].legacy)
                yield from _secrets(instruction, [pair.name for pair in pairs])
            case Label(pairs=pairs):
                yield from _legacy(instruction, legacy=pairs[0].legacy)
            case Workdir(path=path) if not scope.workdir and not self._may_be_absolute(path, scope):
                shown = quoted(self._text(path, scope.env))
                message = f"Relative workdir {shown} can have unexpected results if the base image changes"
                yield _found(rules.WORKDIR_RELATIVE_PATH, message, place)
            case Expose():
                yield from self._ports(instruction, scope)

    def _may_be_absolute(self, path: str, scope: _Scope) -> bool:
        """A variable that only the base image may have set counts as absolute."""
        if self._text(path, scope.env).startswith("/"):
            return True
        return path.lstrip("\"'").startswith("$") and bool(self._missed(path, scope.env)) and not scope.known

    def _ports(self, instruction: Expose, scope: _Scope) -> Iterator[Finding]:
        for text in instruction.ports:
            port = self._text(text, scope.env)
            _, slash, protocol = port.partition("/")
            if slash and protocol != protocol.lower():
                message = f"Defined protocol '{shortened(port)}' in EXPOSE instruction should be lowercase"
                yield _found(rules.EXPOSE_PROTO_CASING, message, instruction.location)
            if ":" in port:
                message = (
                    "EXPOSE instruction should not define an IP address or host-port mapping, "
                    f"found '{shortened(port)}'"
                )
                yield _found(rules.EXPOSE_INVALID_FORMAT, message, instruction.location)

    def _ignored(self, instruction: Copy | Add, scope: _Scope) -> Iterator[Finding]:
        """Sources that `.dockerignore` keeps out of the context. With exceptions in it, nothing can be said."""
        if self._ignore is None or self._ignore.puts_back:
            return
        if isinstance(instruction, Copy) and instruction.source_stage:
            return
        everything = any(pattern.text in _EVERYTHING for pattern in self._ignore.patterns)
        for text in instruction.paths:
            path = self._text(text, scope.env)
            if isinstance(instruction, Add) and ("://" in path or path.startswith("git@")):
                continue
            path = posixpath.normpath(path).lstrip("/")
            if everything if path in _ROOTS else self._ignore.matches(path):
                verb = "Add" if isinstance(instruction, Add) else "Copy"
                message = f"Attempting to {verb} file {quoted(path)} that is excluded by .dockerignore"
                yield _found(rules.COPY_IGNORED_FILE, message, instruction.location)

    def _follow(self, instruction: Instruction, scope: _Scope) -> None:
        """What the instruction sets."""
        match instruction:
            case Arg(args=args):
                for pair in args:
                    if pair.name not in scope.env:
                        scope.env[pair.name] = self._argument(pair.name, pair.default, scope)
            case Env(pairs=pairs):
                values = {self._text(pair.name, scope.env): self._text(pair.value, scope.env) for pair in pairs}
                scope.env.update(values)
            case Shell():
                scope.shell = True
            case Workdir(path=path) if self._may_be_absolute(path, scope):
                scope.workdir = True

    def _argument(self, name: str, default: str | None, scope: _Scope) -> str:
        given = self._build_args.get(name)
        if given is not None:
            return given
        if default is not None:
            return self._text(default, scope.env)
        return self._globals.get(name) or ""


# --- single instructions ----------------------------------------------------------------------------------------------


def _found(rule: Rule, message: str, location: Location) -> Finding:
    return Finding(rule=rule, message=message, location=location)


def _of_node(node: Node) -> Iterator[Finding]:
    if node.empty_line:
        place = replace(node.location, ranges=(Range(node.empty_line, node.empty_line),))
        yield _found(rules.NO_EMPTY_CONTINUATION, "Empty continuation line", place)


def _as_casing(start: From) -> Iterator[Finding]:
    keyword, word = start.node.spelled, start.as_spelled
    if (keyword.islower() and not word.islower()) or (keyword.isupper() and not word.isupper()):
        message = f"'{word}' and '{keyword}' keywords' casing do not match"
        yield _found(rules.FROM_AS_CASING, message, start.location)


def _described(instruction: Instruction, names: list[str]) -> Iterator[Finding]:
    comments = instruction.node.comments
    if not comments or comments[-1].split(" ")[0] in names:
        return
    several = len(names) > 1 and isinstance(instruction, Arg)
    message = (
        f"Comment for {instruction.name} should follow the format: "
        f"`# {'<arg_key>' if several else names[0]} <description>`"
    )
    yield _found(rules.INVALID_DEFINITION_DESCRIPTION, message, instruction.location)


def _secrets(instruction: Instruction, names: list[str]) -> Iterator[Finding]:
    for name in names:
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            message = f"Do not use ARG or ENV instructions for sensitive data ({instruction.name} {quoted(name)})"
            yield _found(rules.SECRETS_USED_IN_ARG_OR_ENV, message, instruction.location)


def _legacy(instruction: Instruction, *, legacy: bool) -> Iterator[Finding]:
    if legacy:
        name = instruction.node.spelled
        message = f'"{name} key=value" should be used instead of legacy "{name} key value" format'
        yield _found(rules.LEGACY_KEY_VALUE_FORMAT, message, instruction.location)


def _used_once(instruction: Instruction, once: dict[type[Instruction], Instruction]) -> Iterator[Finding]:
    """The place is that of the one which does not count."""
    before = once.get(type(instruction))
    if before is not None:
        message = (
            f"Multiple {instruction.node.spelled} instructions should not be used in the same stage because only the "
            "last one will be used"
        )
        yield _found(rules.MULTIPLE_INSTRUCTIONS_DISALLOWED, message, before.location)
    once[type(instruction)] = instruction


def _expanded_texts(instruction: Instruction) -> Iterator[str]:
    """The texts in which variables are replaced, here-documents left out."""
    match instruction:
        case Arg(args=args):
            yield from (pair.default for pair in args if pair.default is not None)
        case Env(pairs=pairs) | Label(pairs=pairs):
            for pair in pairs:
                yield from (pair.name, pair.value)
        case Transfer(sources=sources, target=target, chown=chown, chmod=chmod):
            yield from (source for source in sources if not isinstance(source, Heredoc))
            yield from (target, chown, chmod)
            yield from instruction.exclude
        case Run(mount_texts=texts):
            yield from texts
        case User(user=text) | Workdir(path=text) | StopSignal(signal=text):
            yield text
        case Volume(paths=paths):
            yield from paths
