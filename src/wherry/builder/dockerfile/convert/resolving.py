"""Which stages are needed, what each begins with, and then: all their instructions, in order.

Nothing is asked about a stage that the target does not need. What bases mean is asked at the same time for all; an
image may bring triggers (ONBUILD) that need further stages and images, so that is repeated until nothing new comes up.
"""

import asyncio
from collections.abc import Iterator, Mapping

from wherry.builder.dockerfile import lint
from wherry.builder.dockerfile.convert.copying import absolute, transfer, workdir
from wherry.builder.dockerfile.convert.drawing import Draft, Tree, is_directory, use
from wherry.builder.dockerfile.convert.platforms import platform_arguments
from wherry.builder.dockerfile.convert.running import run
from wherry.builder.dockerfile.convert.scope import Reader
from wherry.builder.dockerfile.convert.settings import apply_setting
from wherry.builder.dockerfile.convert.sources import REFERENCE, SCRATCH, Base, Label, variables
from wherry.builder.dockerfile.convert.state import Building, Common, Entry, Step
from wherry.builder.dockerfile.errors import DockerfileError, located, quoted
from wherry.builder.dockerfile.flags import csv_fields
from wherry.builder.dockerfile.instructions import (
    Arg,
    Copy,
    Instruction,
    Onbuild,
    Run,
    Transfer,
    Workdir,
    parse_trigger,
)
from wherry.builder.dockerfile.rules import INVALID_BASE_IMAGE_PLATFORM, Finding
from wherry.builder.dockerfile.stages import Dockerfile, Stage
from wherry.builder.dockerfile.suggest import hint
from wherry.builder.graph import Copy as CopyAction
from wherry.builder.graph import Files, FileStep, Location
from wherry.builder.options import Options
from wherry.errors import InvalidParameter, WherryError, first_of
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import IMAGE_FIELDS, ImageConfig, Platform, normalize, parse_platform

KNOWN_IMAGES = ("alpine", "busybox", "centos", "debian", "fedora", "golang", "node", "python", "ubuntu")


def global_arguments(
    dockerfile: Dockerfile, options: Options, *, build: Platform, target: Platform
) -> Mapping[str, str]:
    """What ARG before the first FROM declares, and the platform arguments. Raises DockerfileError."""
    wanted = options.target.lower() or dockerfile.stages[-1].name
    found = platform_arguments(build=build, target=target, stage=wanted, overrides=options.build_args)
    for instruction in dockerfile.args:
        with located(instruction.location):
            for arg in instruction.args:
                if arg.name in options.build_args:
                    found[arg.name] = options.build_args[arg.name]
                elif arg.default is not None:
                    found[arg.name] = Reader(env=found, escape=dockerfile.parsed.escape).text(arg.default)
    return found


class Resolving:
    """Of one build for one platform."""

    def __init__(self, dockerfile: Dockerfile, common: Common) -> None:
        """Raises DockerfileError for what cannot be, whatever the target."""
        self._dockerfile, self._common = dockerfile, common
        self._buildings: list[Building] = []
        self._by_name: dict[str, Building] = {}
        self._begun: dict[int, Base] = {}  # by the number of a stage that is built on no other
        self._outside: dict[str, Base] = {}  # by what --from calls it
        self._triggered: set[int] = set()
        self.findings: list[Finding] = []  # about what bases are
        for stage in dockerfile.stages:
            with located(stage.location):
                building = self._enter(stage)
            self._buildings.append(building)
            if stage.name:
                self._by_name[stage.name] = building

    async def build(self, target: Stage) -> Building:
        """The target, finished. Raises WherryErrors; those about an instruction are DockerfileErrors."""
        wanted = self._buildings[target.number]
        while True:
            needed = self._needed(wanted)
            asked = await self._ask(needed)
            triggered = [self._take_triggers(building) for building in needed]
            if not asked and not any(triggered):
                break
        for building in needed:
            self._finish(building)
        root_of(wanted)
        return wanted

    @property
    def arguments(self) -> set[str]:
        """Names that ARG declares, in whatever stage."""
        steps = [step.instruction for building in self._buildings for step in building.steps]
        return {arg.name for each in steps if isinstance(each, Arg) for arg in each.args}

    @property
    def bases(self) -> dict[int, lint.Base]:
        """What the images set that stages are built on, by the number of the stage."""
        found = {}
        for number, base in self._begun.items():
            shell = base.config is not None and bool(base.config.config.shell)
            found[number] = lint.Base(env=variables(base.config), shell=shell)
        return found

    # --- stages as the file has them ----------------------------------------------------------------------------------

    def _enter(self, stage: Stage) -> Building:
        common = self._common
        reader = Reader(env=common.global_args, escape=self._dockerfile.parsed.escape)
        base_name = reader.text(stage.base)
        if not base_name:
            raise DockerfileError(f"base name ({stage.base}) should not be blank{self._meant(reader)}", near=stage.base)
        building = Building(
            common=common,
            stage=stage,
            base=self._by_name.get(base_name),
            base_name=base_name,
            shown=(stage.name or f"stage-{stage.number}") if len(self._dockerfile.stages) > 1 else "",
            platform=self._platform(stage, reader),
            steps=[Step(instruction=each, number=number) for number, each in enumerate(stage.instructions, 1)],
            ignore_cache=self._is_uncached(stage),
        )
        if stage.name and common.sources.named(stage.name, building.platform) is not None:
            building.replaced = True
            building.base, building.base_name, building.steps = None, stage.name, []
        building.total = _shown(building.steps) + (building.base is None and base_name != SCRATCH)
        return building

    def _platform(self, stage: Stage, reader: Reader) -> Platform:
        if not stage.platform:
            return self._common.platform
        text = reader.text(stage.platform)
        if not text:
            near = self._meant(reader)
            raise DockerfileError(f"empty platform value from expression {stage.platform}{near}", near=stage.platform)
        try:
            return parse_platform(text)
        except InvalidParameter as exc:
            near = self._meant(reader)
            raise DockerfileError(
                f"failed to parse platform {stage.platform}: {exc}{near}", near=stage.platform
            ) from None

    def _meant(self, reader: Reader) -> str:
        """A near miss of the first variable without a value that has one."""
        return next(filter(None, (hint(name, self._common.global_args) for name in sorted(reader.unset))), "")

    def _is_uncached(self, stage: Stage) -> bool:
        options = self._common.options
        names = {name.lower() for name in options.no_cache_stages}
        return options.no_cache or bool(names & {stage.name, str(stage.number), f"stage-{stage.number}"})

    # --- what is needed -----------------------------------------------------------------------------------------------

    def _needed(self, wanted: Building) -> list[Building]:
        """`wanted` and what it is made from, in the order of the file. Raises DockerfileError."""
        found: dict[int, Building] = {}
        stack = [wanted]
        while stack:
            building = stack.pop()
            number = building.stage.number
            if number not in found:
                found[number] = building
                stack += [building.base] if building.base is not None else []
                stack += [source for source, _ in self._taken(building)]
        return [found[number] for number in sorted(found)]

    def _taken(self, building: Building) -> Iterator[tuple[Building, Step]]:
        """Stages that steps take files from."""
        for step in building.steps:
            for name in references(step.instruction):
                with located(step.instruction.location):
                    source = self._stage(name)
                    if source is None:
                        continue
                    if source.stage.number >= building.stage.number:
                        raise self._too_late(building, source, name)
                    yield source, step

    def _too_late(self, building: Building, source: Building, name: str) -> DockerfileError:
        if source is building or self._reaches(source, building):
            return DockerfileError(f"circular dependency detected on stage: {building.name}", near=name)
        return DockerfileError(
            f"cannot copy from stage {quoted(name)}, it needs to be defined before current stage "
            f"{quoted(building.shown)}",
            near=name,
        )

    def _reaches(self, start: Building, end: Building) -> bool:
        seen: set[int] = set()
        stack = [start]
        while stack:
            building = stack.pop()
            if building is end:
                return True
            if building.stage.number in seen:
                continue
            seen.add(building.stage.number)
            names = [name for step in building.steps for name in references(step.instruction)]
            sources = [building.base, *map(self._stage, names)]
            stack += [source for source in sources if source is not None]
        return False

    def _stage(self, name: str) -> Building | None:
        """By name, else by number; None when it is something else. Raises DockerfileError for a number too high."""
        if (found := self._by_name.get(name.lower())) is not None:
            return found
        if not (name.isascii() and name.isdecimal()):
            return None
        if len(name) > 9 or int(name) >= len(self._buildings):
            raise DockerfileError(f"invalid stage index {name[:20]}", near=name)
        return self._buildings[int(name)]

    # --- what things mean ---------------------------------------------------------------------------------------------

    async def _ask(self, needed: list[Building]) -> bool:
        """Find out what is not known yet; whether there was anything."""
        asked = {}
        for building in needed:
            number = building.stage.number
            if building.base is None and number not in self._begun:
                asked[number] = self._begin(building)
        outside: dict[str, Location] = {}
        for building in needed:
            for step in building.steps:
                for name in references(step.instruction):
                    if self._stage(name) is None and name not in self._outside:
                        outside.setdefault(name, step.instruction.location)
        others = {name: self._look_outside(name, location) for name, location in outside.items()}
        if not asked and not others:
            return False
        try:
            async with asyncio.TaskGroup() as group:
                bases = {number: group.create_task(each) for number, each in asked.items()}
                names = {name: group.create_task(each) for name, each in others.items()}
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        self._begun |= {number: task.result() for number, task in bases.items()}
        self._outside |= {name: task.result() for name, task in names.items()}
        return True

    async def _begin(self, building: Building) -> Base:
        """The image or context a stage is built on."""
        name = building.base_name
        label = Label(
            name=building.numbered(f"FROM {REFERENCE}", {}) if name != SCRATCH else "",
            title=f"{self._internal(building.platform)} load metadata for {REFERENCE}",
            location=building.stage.location,
            slot=building.slot("0"),
            said=building.stage.start.original,
        )
        base = await self._load(name, building.platform, label, building.stage.location)
        if base.image is not None:
            self._compare(building, base.image.config.platform)
        return base

    def _compare(self, building: Building, actual: Platform) -> None:
        expected, actual = normalize(building.platform), normalize(actual)
        if actual.os and (expected.os, expected.architecture) != (actual.os, actual.architecture):
            message = (
                f"Base image {building.base_name} was pulled with platform {quoted(str(actual))}, expected "
                f"{quoted(str(expected))} for current build"
            )
            location = building.stage.location
            self.findings.append(Finding(rule=INVALID_BASE_IMAGE_PLATFORM, message=message, location=location))

    async def _look_outside(self, name: str, location: Location) -> Base:
        """What no stage is called."""
        platform = self._common.platform
        title = f"{self._internal(platform)} load metadata for {REFERENCE}"
        label = Label(name=f"FROM {REFERENCE}", title=title, location=location)
        return await self._load(name, platform, label, location)

    def _internal(self, platform: Platform) -> str:
        return f"[{platform} internal]" if self._common.several else "[internal]"

    async def _load(self, name: str, platform: Platform, label: Label, location: Location) -> Base:
        with located(location):
            try:
                return await self._common.sources.load(name, platform, label)
            except WherryError as exc:
                prefix = "" if isinstance(exc, DockerfileError) else f"{name}: "
                near = hint(name, (*self._by_name, *KNOWN_IMAGES), any_case=True)
                raise DockerfileError(f"{prefix}{exc.message}{near}", near=name) from exc

    def _take_triggers(self, building: Building) -> bool:
        """ONBUILD of what a stage is built on comes before its own instructions. False when that was done before."""
        if building.stage.number in self._triggered:
            return False
        self._triggered.add(building.stage.number)
        triggers = [
            Step(instruction=parse_trigger(expression, building.stage.location), number=number, trigger=True)
            for number, expression in enumerate(self._expressions(building), 1)
        ]
        building.total += _shown(triggers)
        building.steps = [*triggers, *building.steps]
        return True

    def _expressions(self, building: Building) -> list[str]:
        if building.replaced:
            return []  # those of the context are for the stages built on it
        if building.base is None:
            return _triggers(self._begun[building.stage.number])
        if building.base.replaced:
            return _triggers(self._begun[building.base.stage.number])
        own = [step.instruction for step in building.base.steps if not step.trigger]
        return [each.expression for each in own if isinstance(each, Onbuild)]

    # --- what instructions do -----------------------------------------------------------------------------------------

    def _finish(self, building: Building) -> None:
        with located(building.stage.location):
            if building.base is not None:
                _inherit(building, building.base)
            else:
                _start(building, self._begun[building.stage.number])
        for step in building.steps:
            location = step.instruction.location
            with located(location):
                try:
                    self._apply(building, step)
                except DockerfileError:
                    raise
                except InvalidParameter as exc:
                    raise DockerfileError(exc.message) from exc
        building.finished = True

    def _apply(self, building: Building, step: Step) -> None:
        match step.instruction:
            case Run() as instruction:
                run(building, step, instruction, self._lookup)
            case Transfer() as instruction:
                transfer(building, step, instruction, self._lookup)
            case Workdir() as instruction:
                workdir(building, step, instruction)
            case instruction:
                apply_setting(building, instruction)

    def _lookup(self, name: str) -> Tree:
        source = self._stage(name)
        if source is None:
            return self._outside[name].tree
        assert source.finished, f"stage {name} was not built before it is used"
        return source.tree


def references(instruction: Instruction) -> list[str]:
    """What an instruction takes files from: stages, images, named contexts. Raises DockerfileError."""
    match instruction:
        case Copy(source_stage=name) if name:
            if "$" in name:
                raise DockerfileError(
                    "variable expansion is not supported for --from, define a new stage with FROM using ARG from "
                    "global scope as a workaround",
                    instruction.location,
                    near=name,
                )
            return [name]
        case Run(mount_texts=texts):
            parts = [part.partition("=") for text in texts for part in csv_fields(text, "mounts")]
            return [value for key, _, value in parts if key.lower() == "from" and value]
        case _:
            return []


def _triggers(base: Base) -> list[str]:
    return list(base.config.config.on_build or []) if base.config is not None else []


def _shown(steps: list[Step]) -> int:
    """How many of them progress shows."""
    return sum(isinstance(step.instruction, Run | Transfer | Workdir) for step in steps)


def root_of(building: Building) -> Tree:
    """The stage's tree as one that can be built on: what is in a directory of files is copied into a layer first."""
    if is_directory(building.tree):
        copy = CopyAction(source="/", target="/", contents=True, wildcard=False)
        draft = Draft(
            op=Files(steps=(FileStep(action=copy, input=0, secondary=1, output=0),)),
            inputs=(None, building.tree),
            name=f"[internal] files of context {building.base_name}",
            platform=building.platform,
            location=building.stage.location,
        )
        use(building.tree, "/")
        building.tree = building.common.drawing.add(draft)
    return building.tree


def _inherit(building: Building, base: Building) -> None:
    building.tree = root_of(base)
    building.platform = base.platform
    building.config = base.config
    building.change(on_build=None)  # has been done
    building.author = base.author
    building.bottom = base.tree if base.replaced else base.bottom
    building.image, building.image_platform = base.image, base.image_platform
    building.history = list(base.history)
    building.scope = base.scope.child()


def _start(building: Building, base: Base) -> None:
    building.tree = base.tree
    if not building.replaced:
        root_of(building)
    building.bottom, building.image = building.tree, base.image
    config = base.config
    if config is None:
        building.config = ContainerConfig(working_dir="/")
        building.image_platform = building.common.platform
    else:
        _take_config(building, config)
    building.scope.env.update(variables(config))
    entries = building.config.env or []
    if not any(entry.startswith("PATH=") for entry in entries):
        building.change(env=[*entries, f"PATH={building.scope.env['PATH']}"])
    if building.config.working_dir:
        building.change(working_dir=absolute("/", building.config.working_dir))


def _take_config(building: Building, config: ImageConfig) -> None:
    building.config = ContainerConfig(**{name: getattr(config.config, name) for name in IMAGE_FIELDS})
    building.change(on_build=None)
    building.author = config.author
    building.image_platform = config.platform if config.os and config.architecture else building.common.platform
    building.history = [Entry(history=entry) for entry in config.history]
