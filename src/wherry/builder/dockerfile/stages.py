"""A Dockerfile as stages: what stands before the first FROM, and what each FROM begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.instructions import Arg, From, Instruction, described, parse_instruction
from wherry.builder.dockerfile.parser import Parsed, parse
from wherry.builder.dockerfile.suggest import hint
from wherry.builder.graph import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    number: int
    start: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """Lower case; "" = it has none."""
        return self.start.stage

    @property
    def base(self) -> str:
        """An image, a stage, scratch; variables are not replaced yet."""
        return self.start.base

    @property
    def platform(self) -> str:
        return self.start.platform

    @property
    def location(self) -> Location:
        return self.start.location

    @property
    def description(self) -> str:
        """From the comment above: `# name does this`."""
        return described(self.start.node, self.start.stage_spelled) or described(self.start.node, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    parsed: Parsed
    args: tuple[Arg, ...]  # global: before the first FROM
    stages: tuple[Stage, ...]

    def stage(self, wanted: str) -> Stage | None:
        """By name, whatever the case, else by number; of several of a name the last."""
        lower = wanted.lower()
        for stage in reversed(self.stages):
            if stage.name == lower and lower:
                return stage
        if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 and int(wanted) < len(self.stages):
            return self.stages[int(wanted)]
        return None

    def target(self, wanted: str) -> Stage:
        """The stage to build; "" = the last. Raises DockerfileError in BuildKit's words."""
        if not wanted:
            return self.stages[-1]
        found = self.stage(wanted)
        if found is None:
            near = hint(wanted, names(self.stages), any_case=True)
            raise DockerfileError(f'target stage "{wanted}" could not be found{near}')
        return found


def names(stages: Sequence[Stage]) -> tuple[str, ...]:
    return tuple(stage.name for stage in stages if stage.name)


def parse_dockerfile(data: bytes, filename: str = "Dockerfile") -> Dockerfile:
    """Raises DockerfileError, always with a location."""
    return read_stages(parse(data, filename))


def read_stages(parsed: Parsed) -> Dockerfile:
    """Raises DockerfileError, always with a location."""
    args: list[Arg] = []
    starts: list[From] = []
    contents: list[list[Instruction]] = []
    for node in parsed.instructions:
        instruction = parse_instruction(node, escape=parsed.escape)
        if isinstance(instruction, From):
            starts.append(instruction)
            contents.append([])
        elif contents:
            contents[-1].append(instruction)
        elif isinstance(instruction, Arg):
            args.append(instruction)
        else:
            raise DockerfileError(
                f"no build stage in current context: {instruction.name} stands before the first FROM", node.location
            )
    if not starts:
        raise DockerfileError("dockerfile contains no stages to build", parsed.line(1))
    stages = tuple(
        Stage(number=number, start=start, instructions=tuple(content))
        for number, (start, content) in enumerate(zip(starts, contents, strict=True))
    )
    return Dockerfile(parsed=parsed, args=tuple(args), stages=stages)
