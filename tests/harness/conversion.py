"""Dockerfiles to graphs without registry, client or disk: images are made up, everything else is real."""

from collections.abc import Mapping, Sequence

from wherry.builder.attributes import from_attributes
from wherry.builder.dockerfile.convert.sources import ResolvedImage
from wherry.builder.dockerfile.convert.targets import Target
from wherry.builder.dockerfile.frontend import Definition, answer, build_targets
from wherry.builder.graph import GitSource, LocalSource, Output, ResolveMode
from wherry.builder.log import WarningEvent
from wherry.builder.sources.urls import parse_git
from wherry.digest import DiffID, of
from wherry.errors import NotFound
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import History, ImageConfig, Platform, RootFS, parse_platform

HOST = parse_platform("linux/amd64")
LAYER = DiffID("sha256:" + "1" * 64)
TOOLS = "/usr/sbin:/usr/bin"

IMAGES: Mapping[str, ContainerConfig] = {
    "docker.io/library/alpine:3.20": ContainerConfig(env=[f"PATH={TOOLS}"], cmd=["/bin/sh"], working_dir="/"),
    "docker.io/library/debian:latest": ContainerConfig(
        env=["LANG=C", "EMPTY="],
        cmd=["bash"],
        entrypoint=["/init"],
        user="app:staff",
        working_dir="home/app",
        shell=["/bin/bash", "-c"],
    ),
    "docker.io/library/trigger:latest": ContainerConfig(
        env=[f"PATH={TOOLS}"],
        on_build=["ARG MODE=fast", "COPY --from=alpine:3.20 /lib /lib", "WORKDIR /app", "RUN install $MODE"],
    ),
    "docker.io/library/bare:latest": ContainerConfig(env=["A=b"], labels={"kept": "yes"}),
}


class MadeUpImages:
    """Implements the Resolver."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, ResolveMode, str]] = []  # reference, platform, mode, store
        self.titles: list[str] = []
        self.ignored: Mapping[str, bytes] = {}  # by the name of the directory

    async def image(
        self, reference: str, platform: Platform, mode: ResolveMode, *, store: str, title: str
    ) -> ResolvedImage:
        self.asked.append((reference, str(platform), mode, store))
        self.titles.append(title)
        config = IMAGES.get(reference, ContainerConfig() if store else None)
        if config is None:
            raise NotFound(f"{reference}: not found")
        found = ImageConfig(
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant,
            author="somebody" if "trigger" in reference else "",
            config=config,
            rootfs=RootFS(diff_ids=[] if "bare" in reference else [LAYER]),
            history=[History(created="2024-01-01T00:00:00Z", created_by=f"made {reference}")],
        )
        digest = of(f"{reference} {platform}".encode())
        return ResolvedImage(reference=reference, digest=digest, image_id=of(digest.encode()), config=found)

    async def ignore_file(self, source: LocalSource, *, title: str) -> bytes:
        self.titles.append(title)
        assert source.follow == (".dockerignore",)
        return self.ignored.get(source.name, b"")

    def git(
        self, text: str, *, context: bool = False, keep_git_directory: bool = False, checksum: str = ""
    ) -> GitSource | None:
        found = parse_git(text, context=context)
        return None if found is None else found.source(keep_git_directory=keep_git_directory, checksum=checksum)


class Trial:
    """One conversion; attributes are BuildKit's."""

    def __init__(
        self,
        text: str,
        attributes: Mapping[str, str] | None = None,
        *,
        ignore: bytes | None = b"",
        context: Output | None = None,
        inputs: Mapping[str, Output] | None = None,
        allowed: Sequence[str] = (),
    ) -> None:
        self.images = MadeUpImages()
        self.warnings: list[WarningEvent] = []
        self.options = from_attributes(attributes or {}, inputs=inputs or {}, entitlements=allowed)
        self._definition = Definition(filename="Dockerfile", data=text.encode(), ignore=ignore, context=context)

    async def targets(self) -> tuple[Target, ...]:
        return await build_targets(
            self._definition, self.options, self.images, host=HOST, warn=self.warnings.append, vertex="sha256:0"
        )

    async def target(self) -> Target:
        (found,) = await self.targets()
        return found

    async def answer(self) -> Mapping[str, bytes]:
        return await answer(self._definition, self.options, self.images, host=HOST)
