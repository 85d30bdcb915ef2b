"""Where stages and steps take files from, beside each other: images, directories, repositories, other builds' trees.

A name (`FROM x`, `--from=x`) is a named context if the user gave one of that name (`--build-context`), else an image.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wherry.builder.dockerfile.convert.drawing import Draft, Drawing, LocalDraft, Tree
from wherry.builder.dockerfile.errors import DockerfileError, quoted, shortened
from wherry.builder.dockerfile.ignore import read_ignore
from wherry.builder.graph import GitSource, HttpSource, ImageSource, LocalSource, Location, Output, ResolveMode
from wherry.builder.options import NamedContext, Options
from wherry.digest import Digest, is_digest
from wherry.distribution.proxy import masked
from wherry.errors import InvalidParameter
from wherry.reference import parse as parse_reference
from wherry.spec.image import ImageConfig, Platform, decode_config

SCRATCH = "scratch"
CONTEXT = "context"
IGNORE = ".dockerignore"
_RESERVED = (SCRATCH, CONTEXT)  # names that a named context never replaces
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REFERENCE = "<reference>"  # in a label
Texts = tuple[str, ...]
_GIT_AT = re.compile(r"git@[^/]*:")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """What a reference means today, for one platform."""

    reference: str  # full, without a digest that was not asked for: docker.io/library/alpine:3.20
    digest: (
        Digest | None
    )  # of its manifest, or of the index it was chosen from; None: an image that was only built here
    image_id: str
    config: ImageConfig


class Resolver(Protocol):
    """What conversion must ask others for. Every method raises WherryErrors in words for the user."""

    async def image(
        self, reference: str, platform: Platform, mode: ResolveMode, *, store: str, title: str
    ) -> ResolvedImage:
        """Without pulling layers. `store`: the client's OCI layout it is in; `title` is how progress calls this."""

    async def ignore_file(self, source: LocalSource, *, title: str) -> bytes:
        """`.dockerignore` of a directory of the client's; b"" when it has none."""

    def git(
        self, text: str, *, context: bool = False, keep_git_directory: bool = False, checksum: str = ""
    ) -> GitSource | None:
        """The repository `text` is the URL of, or None. What the URL itself says goes before the arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a stage begins with, or a name stands for."""

    tree: Tree = None
    config: ImageConfig | None = None
    image: ResolvedImage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """How an image's vertex is to be shown, and where the file says so; REFERENCE in it is what the image is called."""

    name: str
    title: str  # of the look-up
    location: Location | None = None
    slot: str = ""
    said: str = ""


class Sources:
    """Those of one build; each is drawn once."""

    def __init__(
        self,
        resolver: Resolver,
        options: Options,
        drawing: Drawing,
        *,
        context: Output | None,
        ignore: tuple[str, ...],
    ) -> None:
        """`context` is the main context when it is no directory of the client's; `ignore` patterns are for one."""
        self.git = resolver.git
        self.ignore = ignore if context is None else ()
        self._resolver, self._options, self._drawing = resolver, options, drawing
        self._context = context
        self._ignores: dict[LocalSource, tuple[str, ...]] = {}

    def context(self) -> Tree:
        """The main context."""
        if self._context is not None:
            return self._context
        source = self._local(self._options.context_local, self._options.context_local, exclude=self.ignore)
        return self._drawing.local(source, "[internal] load build context")

    def _local(self, name: str, shared_key: str, *, exclude: Texts = (), follow: Texts = ()) -> LocalSource:
        session = self._options.sessions.get(name, "")
        return LocalSource(name=name, session=session, exclude=exclude, follow=follow, shared_key=shared_key)

    def named(self, name: str, platform: Platform) -> tuple[str, NamedContext] | None:
        """The named context that stands for `name`, with what the user called it."""
        if name.lower() in _RESERVED:
            return None
        try:
            plain = parse_reference(name).familiar.removesuffix(":latest")
        except InvalidParameter:
            plain = name
        for key in (f"{plain}::{platform}", plain):
            if (found := self._options.contexts.get(key)) is not None:
                return key, found
        return None

    async def load(self, name: str, platform: Platform, label: Label) -> Base:
        """What `name` stands for. Raises WherryErrors."""
        if (found := self.named(name, platform)) is not None:
            return await self.load_context(*found, platform)
        if name == SCRATCH:
            return Base()
        try:
            reference = str(parse_reference(name).tagged())
        except InvalidParameter as exc:
            raise DockerfileError(f"failed to parse stage name {quoted(name)}: {exc}", near=name) from None
        return await self._image(reference, platform, label)

    async def _image(self, reference: str, platform: Platform, label: Label, *, store: str = "") -> Base:
        mode = self._options.resolve
        title = label.title.replace(REFERENCE, reference)
        found = await self._resolver.image(reference, platform, mode, store=store, title=title)
        if not found.config.rootfs.diff_ids:
            return Base(config=found.config, image=found)
        source = ImageSource(
            reference=found.reference, digest=found.digest, image_id=found.image_id, mode=mode, store=store
        )
        shown = found.reference
        if found.digest is not None and "@" not in shown:
            shown = f"{shown}@{found.digest}"
        draft = Draft(
            op=source,
            name=label.name.replace(REFERENCE, shown),
            platform=platform,
            location=label.location,
            slot=label.slot,
            said=label.said,
        )
        return Base(tree=self._drawing.add(draft), config=found.config, image=found)

    async def load_context(self, key: str, given: NamedContext, platform: Platform) -> Base:
        """What `--build-context key=…` says. Raises WherryErrors."""
        value = given.value
        kind, _, rest = value.partition(":")
        where = f"[context {key}]"
        if _GIT_AT.match(value):
            kind = "git"
        match kind:
            case "docker-image":
                return await self._context_image(rest.removeprefix("//"), platform, where)
            case "oci-layout":
                return await self._layout(key, rest.removeprefix("//"), platform, where)
            case "local":
                return Base(tree=await self._directory(key, rest, where))
            case "input":
                config = decode_config(given.config) if given.config else None
                return Base(tree=given.output, config=config)
            case "git" | "ssh" | "http" | "https":
                return Base(tree=self._remote(value, platform, where))
            case _:
                raise InvalidParameter(f"unsupported context source {shortened(kind)} for {key}")

    async def _context_image(self, text: str, platform: Platform, where: str) -> Base:
        if text == SCRATCH:
            return Base()
        reference = str(parse_reference(text).tagged())
        label = Label(name=f"{where} {REFERENCE}", title=f"{where} load metadata for {REFERENCE}")
        return await self._image(reference, platform, label)

    async def _layout(self, key: str, text: str, platform: Platform, where: str) -> Base:
        """`store[:tag]@digest`: the image is called by the name of the context."""
        store, _, digest = text.rpartition("@")
        head, slash, last = store.rpartition("/")
        store = head + slash + last.partition(":")[0]
        if not store or not is_digest(digest):
            raise InvalidParameter(f"oci-layout reference {quoted(text)} of context {key} has no name or no digest")
        plain = parse_reference(key.partition("::")[0])
        label = Label(name=f"{where} OCI load from client", title=f"{where} load metadata for {REFERENCE}")
        return await self._image(str(plain.with_digest(Digest(digest))), platform, label, store=store)

    async def _directory(self, key: str, name: str, where: str) -> LocalDraft:
        shared = f"context:{key}-"
        asked = self._local(name, f"{shared}{IGNORE}", follow=(IGNORE,))
        if asked not in self._ignores:
            data = await self._resolver.ignore_file(asked, title=f"{where} load {IGNORE}")
            self._ignores[asked] = read_ignore(data)
        source = self._local(name, shared + self._options.shared_keys.get(key, ""), exclude=self._ignores[asked])
        return self._drawing.local(source, f"{where} load from client")

    def _remote(self, url: str, platform: Platform, where: str) -> Draft:
        op: GitSource | HttpSource | None = self.git(url, context=True)
        what = "load git source "
        if op is None:
            if not url.startswith(("http://", "https://")):
                raise InvalidParameter(f"invalid git context {shortened(masked(url))}")
            op, what = HttpSource(url=url, filename=CONTEXT), ""
        return self._drawing.add(Draft(op=op, name=f"{where} {what}{masked(url)}", platform=platform))


def variables(config: ImageConfig | None) -> Mapping[str, str]:
    """The environment of an image, with a PATH in any case."""
    entries = list(config.config.env or []) if config is not None else []
    found = dict(entry.partition("=")[::2] for entry in entries)
    return {"PATH": _PATH} | found if "PATH" not in found else found
