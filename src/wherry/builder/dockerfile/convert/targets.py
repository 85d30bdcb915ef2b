"""All platforms of a build: what is to be evaluated, and what the images say besides their layers."""

from collections.abc import Mapping
from dataclasses import dataclass

from wherry.builder.dockerfile import lint
from wherry.builder.dockerfile.convert.drawing import Drawing
from wherry.builder.dockerfile.convert.resolving import Resolving, global_arguments
from wherry.builder.dockerfile.convert.scope import predefined
from wherry.builder.dockerfile.convert.sources import ResolvedImage, Resolver, Sources
from wherry.builder.dockerfile.convert.state import Building, Common
from wherry.builder.dockerfile.rules import Finding
from wherry.builder.dockerfile.stages import Dockerfile
from wherry.builder.graph import Output, Vertex
from wherry.builder.options import Options
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import History, Platform, normalize


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """`history.created` is "" where the exporter says when. `vertex` made the layer; None: the base's, or no layer."""

    history: History
    vertex: Vertex | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The result for one platform."""

    output: Output | None  # None: nothing but the config
    platform: Platform  # that the image says it is for
    config: ContainerConfig
    author: str
    history: tuple[HistoryEntry, ...]
    base: ResolvedImage | None  # the image at the bottom
    base_output: Output | None  # its tree, or that of the context in its place
    stage: str  # name or number


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    targets: tuple[Target, ...]  # one for each platform asked for, in order
    unused_arguments: tuple[str, ...]  # build arguments that mean nothing to any stage
    bases: Mapping[int, lint.Base]  # of stages that were needed, by number: what checks want to know
    findings: tuple[Finding, ...]  # of checks, about what bases are


async def convert(
    dockerfile: Dockerfile,
    options: Options,
    resolver: Resolver,
    *,
    host: Platform,
    ignore: tuple[str, ...] = (),
    context: Output | None = None,
) -> Conversion:
    """Targets for the platforms asked for; for `host` when none is.

    `context` is the main context unless that is a directory of the client's, which `ignore` patterns are for. Raises
    DockerfileError.
    """
    stage = dockerfile.target(options.target)
    drawing = Drawing()
    sources = Sources(resolver, options, drawing, context=context, ignore=ignore)
    wanted = list(options.platforms) or [host]
    buildings = []
    known: set[str] = set()
    bases: dict[int, lint.Base] = {}
    findings: list[Finding] = []
    for platform in wanted:
        common = Common(
            options=options,
            drawing=drawing,
            sources=sources,
            escape=dockerfile.parsed.escape,
            platform=platform,
            global_args=global_arguments(dockerfile, options, build=host, target=platform),
            several=options.multi_platform or len(wanted) > 1,
        )
        resolving = Resolving(dockerfile, common)
        buildings.append(await resolving.build(stage))
        known |= common.global_args.keys() | resolving.arguments
        bases |= resolving.bases
        findings += resolving.findings
    drawing.finish()
    return Conversion(
        targets=tuple(_target(building, drawing) for building in buildings),
        unused_arguments=tuple(
            name for name in sorted(options.build_args) if name not in known and not predefined(name)
        ),
        bases=bases,
        findings=tuple(findings),
    )


def _target(building: Building, drawing: Drawing) -> Target:
    options = building.common.options
    if options.labels:
        building.change(labels={**(building.config.labels or {}), **options.labels})
    return Target(
        output=drawing.output(building.tree),
        platform=_platform(building),
        config=building.config,
        author=building.author,
        history=tuple(
            HistoryEntry(history=entry.history, vertex=_vertex(drawing.output(entry.draft)))
            for entry in building.history
        ),
        base=building.image,
        base_output=drawing.output(building.bottom),
        stage=building.name,
    )


def _vertex(output: Output | None) -> Vertex | None:
    return None if output is None else output.vertex


def _platform(building: Building) -> Platform:
    """What was asked for; if nothing was, what the base is for."""
    asked, said = building.common.platform, building.image_platform or building.common.platform
    if not building.common.options.platforms:
        return normalize(said)
    same = (asked.os, asked.architecture) == (said.os, said.architecture)
    return normalize(said if same and not asked.variant and not asked.os_version else asked)
