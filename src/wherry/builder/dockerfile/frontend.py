"""The bytes of a Dockerfile to what is built of it, or to the answer of a call (`--check`, `--call=outline`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wherry.builder.dockerfile import lint, outline
from wherry.builder.dockerfile.convert.sources import IGNORE, Resolver
from wherry.builder.dockerfile.convert.targets import Conversion, Target, convert
from wherry.builder.dockerfile.errors import DockerfileError
from wherry.builder.dockerfile.ignore import Patterns, read_ignore
from wherry.builder.dockerfile.rules import Checks, Finding
from wherry.builder.dockerfile.stages import Dockerfile, parse_dockerfile
from wherry.builder.graph import Copy, Files, FileStep, LocalSource, Output, Vertex
from wherry.builder.log import WarningEvent
from wherry.builder.options import Call, Options
from wherry.errors import WherryError
from wherry.spec.image import Platform

Warn = Callable[[WarningEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What is built, as it was loaded."""

    filename: str
    data: bytes
    ignore: bytes | None  # of `.dockerignore`; None: the context has it, a directory of the client's
    context: Output | None  # None: that directory


async def build_targets(
    definition: Definition, options: Options, resolver: Resolver, *, host: Platform, warn: Warn, vertex: str = ""
) -> tuple[Target, ...]:
    """What is to be evaluated, for each platform asked for; for `host` when none is.

    Findings of the linter go to `warn`, below `vertex`, the key in the log. Raises DockerfileError for what is wrong
    with the file, WherryErrors for what the resolver cannot find out.
    """
    dockerfile = parse_dockerfile(definition.data, definition.filename)
    checks = lint.checks_of(dockerfile, options.build_args.get("BUILDKIT_DOCKERFILE_CHECK", ""))
    ignore = await _patterns(definition, options, resolver)
    conversion = await _convert(dockerfile, definition, options, resolver, host=host, ignore=ignore)
    if options.check:
        findings = _findings(dockerfile, checks, options, ignore, conversion)
        for finding in findings:
            warn(finding.event(vertex))
        if (failure := checks.failure(findings)) is not None:
            raise failure
    if conversion.unused_arguments:
        names = " ".join(conversion.unused_arguments)
        short = f"[Warning] One or more build-args [{names}] were not consumed"
        warn(WarningEvent(vertex=vertex, rule="UnusedBuildArgs", short=short))
    return conversion.targets


async def answer(
    definition: Definition, options: Options, resolver: Resolver, *, host: Platform
) -> Mapping[str, bytes]:
    """The documents that answer `options.call`. Raises DockerfileError, except for a check, which tells of it."""
    match options.call:
        case Call.DESCRIBE:
            return outline.describe()
        case Call.LINT:
            return await _check(definition, options, resolver, host=host)
        case Call.TARGETS:
            return outline.targets(parse_dockerfile(definition.data, definition.filename))
        case Call.OUTLINE:
            dockerfile = parse_dockerfile(definition.data, definition.filename)
            return outline.outline(dockerfile, target=options.target, build_args=options.build_args)
        case Call.BUILD:
            raise AssertionError("a build is no call")


async def _check(
    definition: Definition, options: Options, resolver: Resolver, *, host: Platform
) -> Mapping[str, bytes]:
    """All that can be found: what the file cannot be built for is one thing of it."""
    findings: list[Finding] = []
    error = None
    try:
        dockerfile = parse_dockerfile(definition.data, definition.filename)
        checks = lint.checks_of(dockerfile, options.build_args.get("BUILDKIT_DOCKERFILE_CHECK", ""))
        ignore = await _patterns(definition, options, resolver)
        conversion = None
        try:
            conversion = await _convert(dockerfile, definition, options, resolver, host=host, ignore=ignore)
        except DockerfileError as exc:
            error = exc
        findings = _findings(dockerfile, checks, options, ignore, conversion)
    except WherryError as exc:
        error = exc if isinstance(exc, DockerfileError) else DockerfileError(exc.message)
    return outline.lint_result(definition.filename, definition.data, findings, error)


def _findings(
    dockerfile: Dockerfile,
    checks: Checks,
    options: Options,
    ignore: tuple[str, ...],
    conversion: Conversion | None,
) -> list[Finding]:
    found = [finding for finding in conversion.findings if checks.wants(finding.rule)] if conversion is not None else []
    bases = conversion.bases if conversion is not None else {}
    patterns = Patterns(ignore) if ignore else None
    return found + lint.lint(dockerfile, checks=checks, build_args=options.build_args, bases=bases, ignore=patterns)


async def _patterns(definition: Definition, options: Options, resolver: Resolver) -> tuple[str, ...]:
    data = definition.ignore
    if data is None and definition.context is None:
        name = options.context_local
        source = LocalSource(
            name=name, session=options.sessions.get(name, ""), follow=(IGNORE,), shared_key=f"{name}-{IGNORE}"
        )
        data = await resolver.ignore_file(source, title=f"[internal] load {IGNORE}")
    try:
        patterns = read_ignore(data or b"")
        Patterns(patterns)
    except DockerfileError as exc:
        raise DockerfileError(f"failed parsing {IGNORE}: {exc.message}") from None
    return patterns


async def _convert(
    dockerfile: Dockerfile,
    definition: Definition,
    options: Options,
    resolver: Resolver,
    *,
    host: Platform,
    ignore: tuple[str, ...],
) -> Conversion:
    context = _scoped(definition.context, options.context_subdirectory, host)
    return await convert(dockerfile, options, resolver, host=host, ignore=ignore, context=context)


def _scoped(context: Output | None, subdirectory: str, host: Platform) -> Output | None:
    """Only what is below `subdirectory`."""
    if context is None or not subdirectory.strip("/."):
        return context
    copy = Copy(source=subdirectory, target="/", contents=True, wildcard=False)
    op = Files(steps=(FileStep(action=copy, secondary=0, output=0),))
    return Output(Vertex(op=op, inputs=(context,), name="[internal] load build context", platform=host))
