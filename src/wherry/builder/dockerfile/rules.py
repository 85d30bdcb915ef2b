"""The build checks docker knows: their names, what they say, and which are wanted (`# check=`)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from wherry.builder.dockerfile.errors import DockerfileError, quoted
from wherry.builder.dockerfile.flags import parse_bool
from wherry.builder.graph import Location
from wherry.builder.log import WarningEvent

_URL = "https://docs.docker.com/go/dockerfile/rule/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    name: str
    description: str
    page: str  # of docker's documentation; "" = none
    experimental: bool = False  # only when asked for

    @property
    def url(self) -> str:
        return f"{_URL}{self.page}/" if self.page else ""


STAGE_NAME_CASING = Rule(
    name="StageNameCasing", page="stage-name-casing", description="Stage names should be lowercase"
)
FROM_AS_CASING = Rule(
    name="FromAsCasing",
    page="from-as-casing",
    description="The 'as' keyword should match the case of the 'from' keyword",
)
NO_EMPTY_CONTINUATION = Rule(
    name="NoEmptyContinuation",
    page="no-empty-continuation",
    description="Empty continuation lines will become errors in a future release",
)
CONSISTENT_INSTRUCTION_CASING = Rule(
    name="ConsistentInstructionCasing",
    page="consistent-instruction-casing",
    description="All commands within the Dockerfile should use the same casing (either upper or lower)",
)
DUPLICATE_STAGE_NAME = Rule(
    name="DuplicateStageName", page="duplicate-stage-name", description="Stage names should be unique"
)
RESERVED_STAGE_NAME = Rule(
    name="ReservedStageName",
    page="reserved-stage-name",
    description="Reserved words should not be used as stage names",
)
JSON_ARGS_RECOMMENDED = Rule(
    name="JSONArgsRecommended",
    page="json-args-recommended",
    description="JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
)
MAINTAINER_DEPRECATED = Rule(
    name="MaintainerDeprecated",
    page="maintainer-deprecated",
    description="The MAINTAINER instruction is deprecated, use a label instead to define an image author",
)
UNDEFINED_ARG_IN_FROM = Rule(
    name="UndefinedArgInFrom", page="undefined-arg-in-from", description="FROM command must use declared ARGs"
)
UNDEFINED_VAR = Rule(
    name="UndefinedVar", page="undefined-var", description="Variables should be defined before their use"
)
WORKDIR_RELATIVE_PATH = Rule(
    name="WorkdirRelativePath",
    page="workdir-relative-path",
    description="Relative workdir without an absolute workdir declared within the build can have unexpected results "
    "if the base image changes",
)
MULTIPLE_INSTRUCTIONS_DISALLOWED = Rule(
    name="MultipleInstructionsDisallowed",
    page="multiple-instructions-disallowed",
    description="Multiple instructions of the same type should not be used in the same stage",
)
LEGACY_KEY_VALUE_FORMAT = Rule(
    name="LegacyKeyValueFormat",
    page="legacy-key-value-format",
    description="Legacy key/value format with whitespace separator should not be used",
)
INVALID_BASE_IMAGE_PLATFORM = Rule(
    name="InvalidBaseImagePlatform",
    page="",
    description="Base image platform does not match expected target platform",
)
REDUNDANT_TARGET_PLATFORM = Rule(
    name="RedundantTargetPlatform",
    page="redundant-target-platform",
    description="Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
)
SECRETS_USED_IN_ARG_OR_ENV = Rule(
    name="SecretsUsedInArgOrEnv",
    page="secrets-used-in-arg-or-env",
    description="Sensitive data should not be used in the ARG or ENV commands",
)
INVALID_DEFAULT_ARG_IN_FROM = Rule(
    name="InvalidDefaultArgInFrom",
    page="invalid-default-arg-in-from",
    description="Default value for global ARG results in an empty or invalid base image name",
)
FROM_PLATFORM_FLAG_CONST_DISALLOWED = Rule(
    name="FromPlatformFlagConstDisallowed",
    page="from-platform-flag-const-disallowed",
    description="FROM --platform flag should not use a constant value",
)
COPY_IGNORED_FILE = Rule(
    name="CopyIgnoredFile",
    page="copy-ignored-file",
    description="Attempting to Copy file that is excluded by .dockerignore",
    experimental=True,
)
INVALID_DEFINITION_DESCRIPTION = Rule(
    name="InvalidDefinitionDescription",
    page="invalid-definition-description",
    description="Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. "
    "If this is not intended to be a description comment, add an empty line or comment between the instruction and "
    "the comment.",
    experimental=True,
)
EXPOSE_PROTO_CASING = Rule(
    name="ExposeProtoCasing",
    page="expose-proto-casing",
    description="Protocol in EXPOSE instruction should be lowercase",
)
EXPOSE_INVALID_FORMAT = Rule(
    name="ExposeInvalidFormat",
    page="expose-invalid-format",
    description="IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error "
    "in a future release",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    rule: Rule
    message: str
    location: Location

    @property
    def line(self) -> int:
        return self.location.ranges[0].start if self.location.ranges else 0

    def event(self, vertex: str) -> WarningEvent:
        """As progress shows it, below `vertex`."""
        place = f" (line {self.line})" if self.line else ""
        return WarningEvent(
            vertex=vertex,
            rule=self.rule.name,
            short=f"{self.rule.name}: {self.message}{place}",
            detail=(self.rule.description,),
            url=self.rule.url,
            location=self.location,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """Which rules are wanted, and whether a finding fails the build."""

    skip: Collection[str] = ()
    skip_all: bool = False
    experimental: Collection[str] = ()
    experimental_all: bool = False
    error: bool = False

    def wants(self, rule: Rule) -> bool:
        if self.skip_all or rule.name in self.skip:
            return False
        return not rule.experimental or self.experimental_all or rule.name in self.experimental

    def failure(self, findings: Collection[Finding]) -> DockerfileError | None:
        """What the build fails with, when it is to fail."""
        if not self.error or not findings:
            return None
        names = sorted({finding.rule.name for finding in findings})
        return DockerfileError(f"lint violation found for rules: {', '.join(names)}")


def parse_checks(text: str) -> Checks:
    """`skip=A,B;error=true;experimental=all`: of `# check=` or BUILDKIT_DOCKERFILE_CHECK. Raises DockerfileError."""
    said: dict[str, str] = {}
    for part in text.split(";") if text.strip() else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise DockerfileError(f"invalid check option {quoted(part)}", near=part)
        if key not in ("skip", "error", "experimental"):
            raise DockerfileError(f"invalid check option {quoted(key)}", near=part)
        said[key] = value
    error = parse_bool(said.get("error", "false"))
    if error is None:
        raise DockerfileError(f"failed to parse check option {quoted('error=' + said['error'])}: it is true or false")
    skip, experimental = _names(said, "skip"), _names(said, "experimental")
    return Checks(
        skip=skip,
        skip_all="all" in skip,
        experimental=experimental,
        experimental_all="all" in experimental,
        error=error,
    )


def _names(said: Mapping[str, str], key: str) -> frozenset[str]:
    return frozenset(name.strip() for name in said.get(key, "").split(",")) - {""}
