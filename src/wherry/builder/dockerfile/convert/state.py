"""A stage while its instructions are applied to it, one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from wherry.builder.dockerfile.convert.drawing import Draft, Drawing, Tree
from wherry.builder.dockerfile.convert.naming import COMMENT, shown_command, shown_platform, step_name
from wherry.builder.dockerfile.convert.scope import Reader, Scope
from wherry.builder.dockerfile.convert.sources import ResolvedImage, Sources
from wherry.builder.dockerfile.instructions import Instruction
from wherry.builder.dockerfile.stages import Stage
from wherry.builder.graph import Op
from wherry.builder.options import Options
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import History, Platform

DEFAULT_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of history, and what made its layer."""

    history: History
    draft: Draft | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An instruction of a stage, or a trigger that its base brought."""

    instruction: Instruction
    number: int  # 1 for the first of the stage; triggers count from 1, too
    trigger: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all stages of a build for one platform share."""

    options: Options
    drawing: Drawing
    sources: Sources
    escape: str
    platform: Platform  # of the result
    global_args: Mapping[str, str]
    several: bool  # platforms: names say which


@dataclass(slots=True, kw_only=True, eq=False)
class Building:
    """One stage. `finished`: other stages and steps may take its tree."""

    common: Common
    stage: Stage
    base: "Building | None" = None  # the stage it is built on
    base_name: str = ""  # else: the image or context, variables replaced
    shown: str = ""  # in progress; "" where there is only one stage
    platform: Platform
    replaced: bool = False  # by a named context
    steps: list[Step] = field(default_factory=list)
    ignore_cache: bool = False
    finished: bool = False

    tree: Tree = None
    config: ContainerConfig = field(default_factory=ContainerConfig)
    author: str = ""
    bottom: Tree = None  # what the first stage of a chain of stages begins with
    image: ResolvedImage | None = None  # and the image it is
    image_platform: Platform | None = None  # what the config below says
    history: list[Entry] = field(default_factory=list)
    scope: Scope = field(default_factory=Scope)
    command_set: bool = False  # by CMD of this stage
    place: int = 0  # of the last step shown
    total: int = 0  # steps that are shown

    @property
    def name(self) -> str:
        """As `slot` has it."""
        return self.stage.name or str(self.stage.number)

    def reader(self) -> Reader:
        return Reader(env=self.scope.env, escape=self.common.escape)

    def change(self, **fields: object) -> None:
        self.config = msgspec.structs.replace(self.config, **fields)

    def shell(self, line: str) -> tuple[str, ...]:
        """The command that a line in the shell form is."""
        shell = self.config.shell
        return (*shell, line) if isinstance(shell, list) and shell else (*DEFAULT_SHELL, line)

    # --- what an instruction leaves -----------------------------------------------------------------------------------

    def tell(self, text: str, *, layer: Draft | None = None) -> None:
        """An entry of history."""
        entry = History(created_by=text, comment=COMMENT, empty_layer=layer is None)
        self.history.append(Entry(history=entry, draft=layer))

    def add(
        self, step: Step, op: Op, inputs: Sequence[Tree], *, name: str, args: Mapping[str, str] | None = None
    ) -> Draft:
        """A step on the stage's tree, which is input 0 and becomes output 0."""
        draft = Draft(
            op=op,
            inputs=tuple(inputs),
            name=name,
            platform=self.platform,
            ignore_cache=self.ignore_cache,
            location=step.instruction.location,
            slot=self.slot(f"on{step.number}" if step.trigger else str(step.number)),
            said=_said(step.instruction),
            args=dict(args or {}),
        )
        self.tree = self.common.drawing.add(draft)
        return self.tree

    def slot(self, number: str) -> str:
        """Where the step of this number stands, the same in the next build: `build/3`."""
        return f"{self.name}/{number}" + (f"@{self.common.platform}" if self.common.several else "")

    # --- names --------------------------------------------------------------------------------------------------------

    def step_name(self, step: Step, *, shell: bool = False, note: str = "", hidden: Sequence[str] = ()) -> str:
        """What progress calls it; `hidden` variables have no value to be shown. Each call is a step further."""
        env = self.scope.env | dict.fromkeys(hidden, "****")
        text = shown_command(step.instruction.original + note, env, escape=self.common.escape, shell=shell)
        return self.numbered(text, env, trigger=step.trigger)

    def numbered(self, text: str, env: Mapping[str, str], *, trigger: bool = False) -> str:
        self.place += 1
        return step_name(
            text,
            place=self.place,
            total=max(self.total, self.place),
            stage=self.shown,
            platform=shown_platform(self.platform, env) if self.common.several else "",
            trigger=trigger,
        )


def _said(instruction: Instruction) -> str:
    """As it stands in the file, with its here-documents."""
    return "\n".join((instruction.original, *(heredoc.content for heredoc in instruction.node.heredocs)))
