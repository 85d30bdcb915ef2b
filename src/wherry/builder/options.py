"""What a user asks of a build, once parsed: the same for all doors. Pure.

BuildKit's clients send it as attributes (`from_attributes`), `POST /build` as a query (api/build.py), Python as it is.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.builder.graph import Limits, NetworkMode, Output, ResolveMode
from wherry.spec.image import Platform


class Call(enum.StrEnum):
    """What is wanted instead of a build (`--call`, `--check`)."""

    BUILD = "build"
    LINT = "frontend.lint"
    OUTLINE = "frontend.outline"
    TARGETS = "frontend.targets"
    DESCRIBE = "frontend.subrequests.describe"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedContext:
    """What `--build-context name=value` puts in the place of an image or stage."""

    value: str  # local:name | docker-image://ref | git or http URL | oci-layout://store@digest | input:key
    output: Output | None = None  # of `input:key`
    config: bytes = b""  # the image config that comes with an input; b"" = none


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTransfer:
    """One `--cache-from` or `--cache-to`."""

    type: str  # registry, local, inline
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One `--output`; its place among them is the number that `Client` knows its destination by."""

    type: str  # image (moby is the same), docker, oci, local, tar
    attributes: Mapping[str, str] = field(default_factory=dict)  # name, push, compression…, as BuildKit has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    filename: str = "Dockerfile"
    context: str = ""  # URL of the main context (git, http, http://buildkit-session/id); "" = the local "context"
    context_subdirectory: str = ""
    dockerfile_local: str = "dockerfile"  # the local directory that has the Dockerfile
    local_dockerfile: bool = False  # it is in `dockerfile_local` even when the context is a URL
    context_local: str = "context"
    inputs: Mapping[str, Output] = field(default_factory=dict)  # trees given; `context`, `dockerfile`: for those locals
    sessions: Mapping[str, str] = field(default_factory=dict)  # local name -> session that has it
    shared_keys: Mapping[str, str] = field(default_factory=dict)  # local name -> hint
    contexts: Mapping[str, NamedContext] = field(default_factory=dict)
    target: str = ""
    platforms: Sequence[Platform] = ()  # none: this machine's
    multi_platform: bool = False  # an index even of a single one
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    no_cache: bool = False
    no_cache_stages: Sequence[str] = ()
    resolve: ResolveMode = ResolveMode.DEFAULT
    extra_hosts: Sequence[tuple[str, str]] = ()
    hostname: str = ""
    network: NetworkMode = NetworkMode.SANDBOX
    on: str = ""  # the network of sandboxes, by name; "" = the default one
    limits: Limits = field(default_factory=Limits)
    entitlements: frozenset[str] = frozenset()  # network.host, security.insecure, device
    cache_imports: Sequence[CacheTransfer] = ()
    cache_exports: Sequence[CacheTransfer] = ()
    provenance: Mapping[str, str] | None = None  # attributes of `attest:provenance`; None = not wanted
    sbom: Mapping[str, str] | None = None
    epoch: int | None = None  # SOURCE_DATE_EPOCH, s; None = not given
    call: Call = Call.BUILD
    check: bool = True  # lint while building
    squash: bool = False
    caching: bool = True  # results may be kept (`rm` of the classic builder does not matter)
