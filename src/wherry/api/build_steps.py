"""The steps of a Dockerfile as the classic builder numbers them: of the stages that are needed, in the file's order."""

from collections.abc import Callable, Iterator

from wherry.api.build_output import Kind, Step
from wherry.builder.dockerfile.convert.resolving import global_arguments, references
from wherry.builder.dockerfile.convert.scope import Reader
from wherry.builder.dockerfile.instructions import Instruction, Run, Transfer, Workdir
from wherry.builder.dockerfile.stages import Dockerfile, Stage
from wherry.builder.options import Options
from wherry.ids import short
from wherry.spec.image import Platform

SCRATCH = "scratch"


def steps_of(
    dockerfile: Dockerfile, options: Options, host: Platform, image_id: Callable[[str], str] = lambda base: ""
) -> list[Step]:
    """`image_id` says which image a base is, as far as that is known before the build.

    Raises DockerfileError for a target that is not there, or references that cannot be read.
    """
    return list(_steps(dockerfile, options, host, image_id))


def _steps(dockerfile: Dockerfile, options: Options, host: Platform, image_id: Callable[[str], str]) -> Iterator[Step]:
    bases = _bases(dockerfile, options, host)
    for arg in dockerfile.args:
        yield Step(Kind.GLOBAL, arg.original)
    for stage in _needed(dockerfile, options, bases):
        name = stage.name or str(stage.number)
        base = bases[stage.number]
        kind = Kind.SCRATCH if base == SCRATCH else Kind.BASE
        known = "" if kind is Kind.SCRATCH or dockerfile.stage(base) is not None else image_id(base)
        yield Step(kind, stage.start.original, f"{name}/0", short(known))
        for number, instruction in enumerate(stage.instructions, 1):
            yield Step(_kind(instruction), instruction.original, f"{name}/{number}")
    if options.labels:
        labels = " ".join(f"{name}={value}" for name, value in sorted(options.labels.items()))
        yield Step(Kind.CONFIG, f"LABEL {labels}")


def _kind(instruction: Instruction) -> Kind:
    match instruction:
        case Run():
            return Kind.RUN
        case Transfer() | Workdir():
            return Kind.FILES
        case _:
            return Kind.CONFIG


def _bases(dockerfile: Dockerfile, options: Options, host: Platform) -> list[str]:
    """What each stage is built on, variables replaced."""
    platform = options.platforms[0] if options.platforms else host
    arguments = global_arguments(dockerfile, options, build=host, target=platform)
    reader = Reader(env=arguments, escape=dockerfile.parsed.escape)
    return [reader.text(stage.base) for stage in dockerfile.stages]


def _needed(dockerfile: Dockerfile, options: Options, bases: list[str]) -> list[Stage]:
    found: dict[int, Stage] = {}
    pending = [dockerfile.target(options.target)]
    while pending:
        stage = pending.pop()
        if stage.number in found:
            continue
        found[stage.number] = stage
        names = [bases[stage.number], *(name for each in stage.instructions for name in references(each))]
        for name in names:
            other = dockerfile.stage(name)
            if other is not None and other.number < stage.number:
                pending.append(other)
    return [found[number] for number in sorted(found)]
