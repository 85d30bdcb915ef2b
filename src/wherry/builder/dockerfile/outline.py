"""What a Dockerfile can be asked instead of being built: its checks, its arguments, its targets. Pure.

Each answer is a set of documents by name, as BuildKit's frontend gives them to its clients: `result.json`,
`result.txt`, `version`, and of the checks `result.statuscode`.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from wherry.builder.dockerfile.errors import DockerfileError, excerpt
from wherry.builder.dockerfile.instructions import Arg, ArgPair, Copy, Instruction, Run
from wherry.builder.dockerfile.mounts import Mount
from wherry.builder.dockerfile.rules import Finding
from wherry.builder.dockerfile.stages import Dockerfile, Stage
from wherry.builder.dockerfile.words import Expanded, expand
from wherry.builder.graph import Location, MountKind
from wherry.builder.options import Call

VERSION = "1.0.0"
DEFAULT_AGENT = "default"

Document = dict[str, object]
Documents = dict[str, bytes]

_REQUESTS = (  # call, description, options, documents
    (Call.OUTLINE, "List all parameters current build target supports", ("target", "Target build stage"), ()),
    (Call.TARGETS, "List all targets current build supports", None, ()),
    (Call.LINT, "Lint a Dockerfile", None, ("result.statuscode",)),
    (Call.DESCRIBE, "List available subrequest types", None, ()),
)


def describe() -> Documents:
    """Which requests there are."""
    found: list[Document] = []
    lines = [("NAME", "VERSION", "DESCRIPTION")]
    for call, description, option, more in _REQUESTS:
        request: Document = {"name": str(call), "version": VERSION, "type": "rpc", "description": description}
        if option is not None:
            request["opts"] = [{"name": option[0], "description": option[1]}]
        request["metadata"] = [{"name": name} for name in ("result.json", "result.txt", *more)]
        found.append(request)
        lines.append((call.removeprefix("frontend."), VERSION, description))
    return _documents(found, _columns(lines, 1))


# --- checks -----------------------------------------------------------------------------------------------------------


def lint_result(
    dockerfile_name: str, data: bytes, findings: Sequence[Finding], error: DockerfileError | None = None
) -> Documents:
    """`error` is why the Dockerfile cannot be read to its end."""
    document: Document = {
        "warnings": [_warning(finding) for finding in findings],
        "sources": [{"filename": dockerfile_name, "language": "Dockerfile", "data": base64.b64encode(data).decode()}],
    }
    if error is not None:
        document["error"] = {"message": error.message, "location": _place(error.location)}
    text = "".join(f"\n{_shown(finding)}\n" for finding in findings)
    if error is not None:
        text += f"\nERROR: {error.message}\n" + (f"{excerpt(error.location)}\n" if error.location is not None else "")
    failed = bool(findings) or error is not None
    return {**_documents(document, text), "result.statuscode": b"1" if failed else b"0"}


def _warning(finding: Finding) -> Document:
    warning: Document = {"ruleName": finding.rule.name, "description": finding.rule.description}
    if finding.rule.url:
        warning["url"] = finding.rule.url
    return {**warning, "detail": finding.message, "location": _place(finding.location)}


def _shown(finding: Finding) -> str:
    url = f" - {finding.rule.url}" if finding.rule.url else ""
    return f"WARNING: {finding.rule.name}{url}\n{finding.message}\n{excerpt(finding.location, column=False)}"


# --- targets ----------------------------------------------------------------------------------------------------------


def targets(dockerfile: Dockerfile) -> Documents:
    found: list[Document] = []
    lines = [("TARGET", "DESCRIPTION")]
    for stage in dockerfile.stages:
        last = stage.number == len(dockerfile.stages) - 1
        entry: Document = {
            "name": stage.name,
            "default": last,
            "description": stage.description,
            "base": stage.base,
            "platform": stage.platform,
            "location": _place(stage.location),
        }
        found.append({key: value for key, value in entry.items() if value})
        name = " ".join([stage.name, "(default)"] if last and stage.name else ["(default)"] if last else [stage.name])
        lines.append((name, stage.description))
    document: Document = {"targets": found, "sources": [base64.b64encode(dockerfile.parsed.data).decode()]}
    return _documents(document, _columns(lines, 1))


# --- outline ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Asked:
    """What a target and the stages it is made from take from outside."""

    args: dict[str, tuple[ArgPair, str, Location]] = field(default_factory=dict)  # value
    secrets: dict[str, tuple[bool, Location]] = field(default_factory=dict)  # required
    agents: dict[str, tuple[bool, Location]] = field(default_factory=dict)
    caches: dict[str, Location] = field(default_factory=dict)


def outline(dockerfile: Dockerfile, *, target: str = "", build_args: Mapping[str, str] | None = None) -> Documents:
    """Arguments with their values, secrets, ssh agents and cache mounts. Raises DockerfileError."""
    stage = dockerfile.target(target)
    asked = _Outliner(dockerfile, build_args or {}).run(stage)
    document: Document = {}
    if stage.name:
        document["name"] = stage.name
    if stage.description:
        document["description"] = stage.description
    lists: dict[str, list[Document]] = {
        "args": [_argument(pair, value, place) for pair, value, place in _by_line(asked.args)],
        "secrets": [_needed(name, *asked.secrets[name]) for name in asked.secrets],
        "ssh": [_needed(name, *asked.agents[name]) for name in asked.agents],
        "cache": [{"ID": name, "location": _place(place)} for name, place in asked.caches.items()],
    }
    document |= {name: entries for name, entries in lists.items() if entries}
    document["sources"] = [base64.b64encode(dockerfile.parsed.data).decode()]
    return _documents(document, _outline_text(stage, asked))


def _by_line(args: Mapping[str, tuple[ArgPair, str, Location]]) -> list[tuple[ArgPair, str, Location]]:
    return sorted(args.values(), key=lambda entry: entry[2].ranges[0].start)


def _argument(pair: ArgPair, value: str, place: Location) -> Document:
    entry: Document = {"name": pair.name, "description": pair.description, "value": value, "location": _place(place)}
    return {key: said for key, said in entry.items() if said}


def _needed(name: str, required: bool, place: Location) -> Document:
    entry: Document = {"name": name, "required": required, "location": _place(place)}
    return {key: said for key, said in entry.items() if said}


def _outline_text(stage: Stage, asked: _Asked) -> str:
    parts: list[str] = []
    if stage.name or stage.description:
        lines = [("TARGET:", stage.name or "(default)")]
        if stage.description:
            lines.append(("DESCRIPTION:", stage.description))
        parts.append(_columns(lines, 1))
    if asked.args:
        rows = [(pair.name, value, pair.description) for pair, value, _ in _by_line(asked.args)]
        parts.append(_columns([("BUILD ARG", "VALUE", "DESCRIPTION"), *rows], 3))
    for title, entries in (("SECRET", asked.secrets), ("SSH", asked.agents)):
        if entries:
            needs = [(name, "true" if required else "") for name, (required, _) in entries.items()]
            parts.append(_columns([(title, "REQUIRED"), *needs], 3))
    return "".join(part + "\n" for part in parts)


class _Outliner:
    def __init__(self, dockerfile: Dockerfile, build_args: Mapping[str, str]) -> None:
        self._file = dockerfile
        self._build_args = build_args
        self._asked = _Asked()
        self._globals: dict[str, tuple[ArgPair, str | None, Location, frozenset[str]]] = {}
        for arg in dockerfile.args:
            self._read_globals(arg)

    def run(self, target: Stage) -> _Asked:
        waiting, seen = [target], set[int]()
        while waiting:
            stage = waiting.pop()
            if stage.number not in seen:
                seen.add(stage.number)
                waiting += self._stage(stage)
        return self._asked

    def _expand(self, text: str, env: Mapping[str, str]) -> Expanded:
        try:
            return expand(text, env, escape=self._file.parsed.escape)
        except DockerfileError:
            return expand("", {})

    def _read_globals(self, arg: Arg) -> None:
        env = self._global_values()
        for pair in arg.args:
            value = self._expand(pair.default, env) if pair.default is not None else None
            said = self._build_args.get(pair.name, None if value is None else value.text)
            self._globals[pair.name] = (pair, said, arg.location, frozenset() if value is None else value.used)
            if said is not None:
                env[pair.name] = said

    def _global_values(self) -> dict[str, str]:
        return {name: value for name, (_, value, _, _) in self._globals.items() if value is not None}

    def _use_global(self, name: str) -> None:
        found = self._globals.get(name)
        if found is not None and name not in self._asked.args:
            pair, value, place, others = found
            self._asked.args[name] = (pair, value or "", place)
            for other in others:
                self._use_global(other)

    def _stage(self, stage: Stage) -> Iterator[Stage]:
        """Notes what the stage asks for; gives the stages it is made from."""
        for text in (stage.base, stage.platform):
            for name in self._expand(text, self._global_values()).used:
                self._use_global(name)
        env: dict[str, str] = {}
        for instruction in stage.instructions:
            if isinstance(instruction, Arg):
                env |= self._args(instruction, env)
            elif isinstance(instruction, Run):
                self._mounts(instruction, env)
        return self._sources(stage)

    def _args(self, arg: Arg, env: Mapping[str, str]) -> dict[str, str]:
        values: dict[str, str] = {}
        for pair in arg.args:
            if pair.default is None and pair.name in self._globals:
                self._use_global(pair.name)
                value = self._globals[pair.name][1] or ""
            else:
                default = self._expand(pair.default or "", {**env, **values}).text
                value = self._build_args.get(pair.name, default)
                self._asked.args[pair.name] = (pair, value, arg.location)
            values[pair.name] = value
        return values

    def _mounts(self, run: Run, env: Mapping[str, str]) -> None:
        for mount in self._read(run, env):
            name = mount.id or mount.source
            match mount.kind:
                case MountKind.SECRET:
                    name = name or mount.target.rsplit("/", 1)[-1]
                    required = mount.required or self._asked.secrets.get(name, (False,))[0]
                    self._asked.secrets[name] = (required, run.location)
                case MountKind.SSH:
                    name = mount.id or DEFAULT_AGENT
                    required = mount.required or self._asked.agents.get(name, (False,))[0]
                    self._asked.agents[name] = (required, run.location)
                case MountKind.CACHE:
                    self._asked.caches.setdefault(mount.id or mount.target, run.location)

    def _read(self, run: Run, env: Mapping[str, str]) -> tuple[Mount, ...]:
        try:
            return run.mounts(lambda text: self._expand(text, env).text)
        except DockerfileError:
            return ()  # a value that only the base image knows: the build tells

    def _sources(self, stage: Stage) -> Iterator[Stage]:
        base = self._expand(stage.base, self._global_values()).text.lower()
        names = [base, *(name for instruction in stage.instructions for name in _stages_of(instruction))]
        for name in names:
            found = self._file.stage(name)
            if found is not None and found.number < stage.number:
                yield found


def _stages_of(instruction: Instruction) -> Iterator[str]:
    if isinstance(instruction, Copy) and instruction.source_stage:
        yield instruction.source_stage
    if isinstance(instruction, Run):
        for text in instruction.mount_texts:
            yield from (part[5:] for part in text.split(",") if part.lower().startswith("from="))


# --- documents --------------------------------------------------------------------------------------------------------


def _documents(document: object, text: str) -> Documents:
    return {
        "result.json": msgspec.json.format(msgspec.json.encode(document), indent=2),
        "result.txt": text.encode(errors="replace"),
        "version": VERSION.encode(),
    }


def _place(location: Location | None) -> Document:
    if location is None:
        return {}
    ranges = [{"start": {"line": part.start}, "end": {"line": part.end}} for part in location.ranges]
    return {"ranges": ranges}


def _columns(rows: Sequence[tuple[str, ...]], gap: int) -> str:
    """Aligned, the last column as wide as it is."""
    widths = [max(len(row[column]) for row in rows) + gap for column in range(len(rows[0]) - 1)]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)) + row[-1] for row in rows)
    return "".join(line + "\n" for line in lines)
