"""The provenance of a result: from what, and how, it was built; SLSA v0.2, or v1 when asked, with BuildKit's fields.

    mode=min    materials, platform, the frontend and what it was asked, where the source is kept
    mode=max    besides: build arguments, labels, ids of secrets, the Dockerfile, the steps; when it was built, its ref

Of mode=min the same build gives the same bytes, and with them the same digest of the index.
Sources: https://slsa.dev/provenance/v0.2 and /v1; BuildKit docs/attestations/slsa-provenance.md.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from wherry.builder.export.attest import purl
from wherry.builder.export.settings import flag
from wherry.builder.export.work import Statement, Work
from wherry.builder.graph import Exec, LocalSource, Location, MountKind, Output, Vertex, walk
from wherry.builder.records.record import Input, InputKind, without_passwords
from wherry.errors import InvalidParameter
from wherry.reference import parse
from wherry.spec.image import Platform, format_time, normalize, parse_platform

SLSA_02 = "https://slsa.dev/provenance/v0.2"
SLSA_1 = "https://slsa.dev/provenance/v1"
BUILD_TYPE_02 = "https://mobyproject.org/buildkit@v1"
BUILD_TYPE_1 = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md"
METADATA = "https://mobyproject.org/buildkit@v1#metadata"

_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_SHA1 = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")

# Of the machine or of the moment, and nothing that the result is made from.
_PASSING = frozenset({"cgroup-parent", "image-resolve-mode", "platform", "cache-imports", "requestid"})
# How it is gone about, which changes nothing of the result.
_MANNER = frozenset(
    {"no-cache", "shm-size", "ulimit", "memory", "memswap"}
    | {f"cpu{each}" for each in ("shares", "period", "quota", "setcpus", "setmems")}
)
_PASSING_GROUPS = ("attest:", "local-sessionid:", "sharedkey:", "input-metadata:", "vcs:", "frontend.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a build when its results are there."""

    ref: str
    attributes: Mapping[str, str]  # of the frontend, as the client sent them
    host: Platform
    started: int = 0  # ns since the epoch
    finished: int = 0
    frontend: str = "dockerfile.v0"
    inputs: Sequence[Input] = ()
    context: str = ""  # URL of the context; "" for the client's directories
    filename: str = "Dockerfile"
    dockerfile: bytes = b""
    outputs: Mapping[str, Output | None] = field(default_factory=dict)  # by platform: what each result is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The attributes of `attest:provenance`."""

    full: bool
    version: str
    reproducible: bool
    inline_only: bool
    referrer: bool
    filename: str
    builder_id: str


def wish(attributes: Mapping[str, str]) -> Wish:
    """Raises InvalidParameter."""
    mode = attributes.get("mode", "max")
    if mode not in ("min", "max", "full"):
        raise InvalidParameter(f"invalid mode {mode[:50]!r} of provenance: want min or max")
    version = attributes.get("version", "v0.2")
    if version not in ("v0.2", "v1"):
        raise InvalidParameter(f"invalid version {version[:50]!r} of provenance: want v0.2 or v1")
    filename = attributes.get("filename") or "provenance.json"
    if "/" in filename or not filename.isprintable():
        raise InvalidParameter(f"invalid filename {filename[:50]!r} of provenance")
    return Wish(
        full=mode != "min",
        version=version,
        reproducible=flag(attributes, "reproducible"),
        inline_only=flag(attributes, "inline-only"),
        referrer=flag(attributes, "referrers"),
        filename=filename,
        builder_id=attributes.get("builder-id", ""),
    )


def with_provenance(work: Work, facts: Facts, attributes: Mapping[str, str]) -> Work:
    """Each variant with the statement of how it was made."""
    wanted = wish(attributes)
    variants = []
    for variant in work.variants:
        platform = str(normalize(variant.platform))
        described = _Description(facts, wanted, platform)
        predicate = described.slsa_1() if wanted.version == "v1" else described.slsa_02()
        statement = Statement(
            predicate_type=SLSA_1 if wanted.version == "v1" else SLSA_02,
            predicate=predicate,
            name=wanted.filename,
            inline_only=wanted.inline_only,
            referrer=wanted.referrer,
        )
        variants.append(replace(variant, statements=[*variant.statements, statement]))
    return work.with_variants(variants)


class _Description:
    """One platform's result."""

    def __init__(self, facts: Facts, wanted: Wish, platform: str) -> None:
        self._facts, self._wanted, self._platform = facts, wanted, platform
        output = facts.outputs.get(platform)
        self._vertices = walk([output]) if output is not None else []
        self._locals = {each.name for each in facts.inputs if each.kind is InputKind.LOCAL}
        self._locals |= {vertex.op.name for vertex in self._vertices if isinstance(vertex.op, LocalSource)}

    def slsa_02(self) -> dict[str, Any]:
        facts, wanted = self._facts, self._wanted
        invocation: dict[str, Any] = {
            "configSource": self._config_source("entryPoint"),
            "parameters": self._parameters(),
            "environment": {"platform": str(normalize(facts.host))},
        }
        metadata: dict[str, Any] = {}
        if wanted.full:
            metadata |= {
                "buildInvocationID": facts.ref,
                "buildStartedOn": format_time(facts.started),
                "buildFinishedOn": format_time(facts.finished),
            }
        metadata |= {
            "completeness": {
                "parameters": self._complete,
                "environment": True,
                "materials": self._hermetic,
            },
            "reproducible": wanted.reproducible,
            METADATA: self._buildkit(),
        }
        found: dict[str, Any] = {
            "builder": {"id": wanted.builder_id},
            "buildType": BUILD_TYPE_02,
            "materials": self._materials(),
            "invocation": invocation,
            "metadata": metadata,
        }
        if wanted.full:
            found["buildConfig"] = {"llbDefinition": self._steps()}
        return found

    def slsa_1(self) -> dict[str, Any]:
        facts, wanted = self._facts, self._wanted
        internal: dict[str, Any] = {"builderPlatform": str(normalize(facts.host))}
        if wanted.full:
            internal["buildConfig"] = {"llbDefinition": self._steps()}
        metadata: dict[str, Any] = {}
        if wanted.full:
            metadata |= {
                "invocationId": facts.ref,
                "startedOn": format_time(facts.started),
                "finishedOn": format_time(facts.finished),
            }
        metadata |= {
            "buildkit_hermetic": self._hermetic,
            "buildkit_completeness": {"request": self._complete, "resolvedDependencies": self._hermetic},
            "buildkit_reproducible": wanted.reproducible,
            "buildkit_metadata": self._buildkit(),
        }
        return {
            "buildDefinition": {
                "buildType": BUILD_TYPE_1,
                "externalParameters": {
                    "configSource": self._config_source("path"),
                    "request": self._parameters(),
                },
                "internalParameters": internal,
                "resolvedDependencies": self._materials(),
            },
            "runDetails": {"builder": {"id": wanted.builder_id}, "metadata": metadata},
        }

    # --- what it was asked --------------------------------------------------------------------------------------------

    @property
    def _complete(self) -> bool:
        """All that was asked is told."""
        return self._wanted.full or not any(_is_argument(name) for name in self._facts.attributes)

    def _parameters(self) -> dict[str, Any]:
        arguments = {
            name: value
            for name, value in sorted(without_passwords(self._facts.attributes).items())
            if name not in _PASSING
            and not name.startswith(_PASSING_GROUPS)
            and (self._wanted.full or not (_is_argument(name) or name in _MANNER))
        }
        found: dict[str, Any] = {"frontend": self._facts.frontend, "args": arguments}
        if self._wanted.full:
            found |= self._offered()
        if self._locals:
            found["locals"] = [{"name": name} for name in sorted(self._locals)]
        return found

    def _offered(self) -> dict[str, Any]:
        """Ids of secrets and agents that steps could see."""
        secrets: dict[str, bool] = {}
        agents: dict[str, bool] = {}
        for vertex in self._vertices:
            for mount in vertex.op.mounts if isinstance(vertex.op, Exec) else ():
                known = {MountKind.SECRET: secrets, MountKind.SSH: agents}.get(mount.kind)
                if known is not None:
                    known[mount.secret_id] = mount.optional and known.get(mount.secret_id, True)
        listed = {"secrets": secrets, "ssh": agents}
        return {
            name: [{"id": key, "optional": True} if optional else {"id": key} for key, optional in sorted(ids.items())]
            for name, ids in listed.items()
            if ids
        }

    def _config_source(self, path: str) -> dict[str, Any]:
        """Where the Dockerfile is from, when others can get it there."""
        found: dict[str, Any] = {}
        context = without_passwords({"": self._facts.context})[""]
        if context and not context.startswith("http://buildkit-session/"):
            found["uri"] = context
            beginning = context.partition("#")[0]
            for each in self._facts.inputs:
                if each.digest and without_passwords({"": each.name})[""].partition("#")[0] == beginning:
                    found["digest"] = _digest(each)
        found[path] = self._facts.filename
        return found

    # --- what it was made from ----------------------------------------------------------------------------------------

    @property
    def _hermetic(self) -> bool:
        """Everything that went into it is among the materials: no directory of a client's, no step with a network."""
        if self._locals:
            return False
        return not any(isinstance(vertex.op, Exec) and vertex.op.network != "none" for vertex in self._vertices)

    def _materials(self) -> list[dict[str, Any]]:
        found = {}
        for each in self._facts.inputs:
            if each.kind is InputKind.LOCAL or not each.digest:
                continue
            found[_uri(each)] = {"uri": _uri(each), "digest": _digest(each)}
        return [found[uri] for uri in sorted(found)]

    def _buildkit(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        attributes = without_passwords(self._facts.attributes)
        vcs = {name.removeprefix("vcs:"): value for name, value in attributes.items() if name.startswith("vcs:")}
        if vcs:
            found["vcs"] = dict(sorted(vcs.items()))
        if self._wanted.full and self._facts.dockerfile:
            source: dict[str, Any] = {
                "infos": [
                    {
                        "filename": self._facts.filename,
                        "language": "Dockerfile",
                        "data": base64.b64encode(self._facts.dockerfile).decode(),
                    }
                ]
            }
            locations = {
                f"step{number}": {"locations": [_ranges(vertex.location)]}
                for number, vertex in enumerate(self._vertices)
                if vertex.location is not None
            }
            if locations:
                source["locations"] = locations
            found["source"] = source
        return found

    def _steps(self) -> list[dict[str, Any]]:
        """Everything that was evaluated, inputs before their users."""
        numbers = {id(vertex): number for number, vertex in enumerate(self._vertices)}
        return [_step(vertex, numbers) for vertex in self._vertices]


def _step(vertex: Vertex, numbers: Mapping[int, int]) -> dict[str, Any]:
    found: dict[str, Any] = {"id": f"step{numbers[id(vertex)]}", "name": vertex.name}
    inputs = [f"step{numbers[id(each.vertex)]}:{each.index}" for each in vertex.inputs if each is not None]
    if inputs:
        found["inputs"] = inputs
    operation: dict[str, Any] = {"type": type(vertex.op).__name__.lower()}
    if isinstance(vertex.op, Exec):
        operation |= {"args": list(vertex.op.args), "cwd": vertex.op.cwd, "network": str(vertex.op.network)}
        if vertex.op.user:
            operation["user"] = vertex.op.user
    found["op"] = operation
    return found


def _is_argument(name: str) -> bool:
    return name.startswith(("build-arg:", "label:"))


def _ranges(location: Location) -> dict[str, Any]:
    ranges = [{"start": {"line": each.start}, "end": {"line": each.end}} for each in location.ranges]
    return {"sourceIndex": 0, "ranges": ranges}


def _uri(material: Input) -> str:
    name = without_passwords({"": material.name})[""]
    if material.kind not in (InputKind.IMAGE, InputKind.LAYOUT):
        return name
    platform = parse_platform(material.platform) if material.platform else None
    try:
        found = purl(parse(name), platform)
    except InvalidParameter:
        return name
    return found.replace("pkg:docker/", "pkg:oci/", 1) if material.kind is InputKind.LAYOUT else found


def _digest(material: Input) -> dict[str, str]:
    """A commit is somewhere in what a checkout is known by."""
    for algorithm, pattern in (("sha256", _SHA256), ("sha1", _SHA1)):
        if (match := pattern.search(material.digest)) is not None:
            return {algorithm: match[0]}
    return {}
