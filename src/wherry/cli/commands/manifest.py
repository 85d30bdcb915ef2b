"""`manifest`: what a registry has under a name, and lists of images for several platforms.

The registry is spoken to from here, without the engine; lists are drafts on this side until they are pushed.
"""

from __future__ import annotations

from wherry.cli.command import CLI, UNLIMITED, Command
from wherry.cli.console import Failure, flush, line, warn
from wherry.cli.credentials import auth_for
from wherry.cli.drafts import PLATFORM, DraftError, Drafts, Entry, NoSuchManifest, list_document, ordered
from wherry.cli.flags import BOOL, STRING, STRINGS, Flag, Flags
from wherry.cli.names import InvalidReference, Name, parse_name
from wherry.client import jsontext
from wherry.client.registry import LISTS, MANIFESTS, Fetched, ManifestUnknown, Registry
from wherry.client.registry_auth import Credentials, RegistryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OS_ARCHES = {
    "darwin": "386 amd64 arm arm64",
    "dragonfly": "amd64",
    "freebsd": "386 amd64 arm",
    "linux": "386 amd64 arm arm64 loong64 mips64 mips64le ppc64le riscv64 s390x",
    "netbsd": "386 amd64 arm",
    "openbsd": "386 amd64 arm",
    "plan9": "386 amd64",
    "solaris": "amd64",
    "windows": "386 amd64 arm64",
}


class Remote:
    """The registries of one command line, each with the user's credentials for it."""

    def __init__(self, cli: CLI, *, insecure: bool) -> None:
        self.cli = cli
        self.insecure = insecure
        self._open: dict[str, Registry] = {}

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        for registry in self._open.values():
            registry.close()

    def registry(self, name: Name) -> Registry:
        if name.domain not in self._open:
            auth = auth_for(self.cli, name.server)
            known = Credentials(
                str(auth.get("username", "")),
                str(auth.get("password", "")),
                identity_token=str(auth.get("identitytoken", "")),
                registry_token=str(auth.get("registrytoken", "")),
            )
            self._open[name.domain] = Registry(
                name.domain, known if auth else None, insecure=self.insecure, environ=self.cli.environ
            )
        return self._open[name.domain]

    def fetch(self, name: Name) -> Fetched:
        """What the name leads to, an image's manifest or a list; Failure for anything else."""
        reference = _full(name)
        try:
            fetched = self.registry(name).get_manifest(name.path, name.digest or name.tag)
        except ManifestUnknown:
            raise NoSuchManifest(f"no such manifest: {reference}") from None
        if fetched.media_type not in (*MANIFESTS, *LISTS):
            raise Failure(f"{reference} is no image: its media type is {fetched.media_type or 'not told'}")
        return fetched

    def image(self, name: Name, fetched: Fetched) -> Entry:
        """An image as an entry of a list, its platform taken from its config."""
        registry = self.registry(name)
        descriptor = _descriptor(fetched)
        try:
            config = jsontext.loads(registry.get_blob(name.path, jsontext.loads(fetched.raw)["config"]["digest"]))
            platform = {"architecture": "", "os": "", **{key: config[key] for key in PLATFORM if key in config}}
        except (jsontext.JSONError, KeyError, TypeError):
            raise Failure(f"{_full(name)}: its manifest or its config is no valid document") from None
        descriptor["platform"] = ordered(platform, PLATFORM)
        return Entry(_full(name), descriptor, fetched.raw)

    def images(self, name: Name, fetched: Fetched, *, whole: bool) -> list[Entry]:
        """The images of a list that is in the registry, with their manifests when they are wanted `whole`."""
        found: list[Entry] = []
        try:
            children = jsontext.loads(fetched.raw)["manifests"]
            descriptors = [{key: child[key] for key in ("mediaType", "digest", "size")} for child in children]
            platforms = [{"architecture": "", "os": "", **(child.get("platform") or {})} for child in children]
        except (jsontext.JSONError, KeyError, TypeError, AttributeError):
            raise Failure(f"{_full(name)} is no valid manifest list") from None
        for descriptor, platform in zip(descriptors, platforms, strict=True):
            digest, raw = str(descriptor["digest"]), b""
            if whole:
                child = self.registry(name).get_manifest(name.path, digest)
                descriptor, raw = _descriptor(child), child.raw
            descriptor["platform"] = ordered(platform, PLATFORM)
            reference = f"{name.repository}{':' + name.tag if name.tag else ''}@{digest}"
            found.append(Entry(reference, descriptor, raw))
        return found


def _descriptor(fetched: Fetched) -> dict[str, Any]:
    return {"mediaType": fetched.media_type, "digest": fetched.digest, "size": len(fetched.raw)}


def _full(name: Name) -> str:
    return name.repository + name.suffix


def _parse(text: str, prefix: str = "") -> Name:
    try:
        return parse_name(text).with_default_tag()
    except InvalidReference as exc:
        raise Failure(f"{prefix}{exc}") from None


def _told(run: Callable[[CLI, Flags, list[str]], int]) -> Callable[[CLI, Flags, list[str]], int]:
    """A command whose failures with drafts and registries end it with their words."""

    def told(cli: CLI, flags: Flags, arguments: list[str]) -> int:
        try:
            return run(cli, flags, arguments)
        except (DraftError, RegistryError) as exc:
            raise Failure(str(exc)) from exc

    return told


def inspect(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    drafts, verbose = Drafts(cli.config_directory), flags.on("verbose")
    name = _parse(arguments[-1])
    if len(arguments) == 2:
        _show_image(drafts.get(_full(_parse(arguments[0])), _full(name)), verbose=verbose)
        return 0
    try:
        _show_list(drafts.entries(_full(name)), name, verbose=verbose)
        return 0
    except NoSuchManifest:
        pass
    with Remote(cli, insecure=flags.on("insecure")) as remote:
        fetched = remote.fetch(name)
        if fetched.media_type in LISTS:
            _show_list(remote.images(name, fetched, whole=verbose), name, verbose=verbose)
        elif verbose:
            _show_image(remote.image(name, fetched), verbose=True)
        else:
            _show_image(Entry(_full(name), _descriptor(fetched), fetched.raw), verbose=False)
    return 0


def _show_image(entry: Entry, *, verbose: bool) -> None:
    if verbose:
        text = jsontext.dumps(entry.document(), html=True)
    elif entry.raw:
        text = entry.raw.decode("utf-8", "replace")
    else:
        raise Failure(f"{entry.reference}: its draft has no manifest: make the list anew")
    line(jsontext.indent(text, "\t"))


def _show_list(entries: list[Entry], name: Name, *, verbose: bool) -> None:
    if verbose:
        line(jsontext.indent(jsontext.dumps([entry.document() for entry in entries], html=True), "\t"))
        return
    try:
        line(list_document(entries, name)[1])
    except DraftError as exc:
        raise Failure(f"failed to assemble ManifestDescriptor: {exc}") from None


def create(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    drafts = Drafts(cli.config_directory)
    target = _full(_parse(arguments[0], f"error parsing name for manifest list {arguments[0]}: "))
    try:
        drafts.entries(target)
    except NoSuchManifest:
        pass
    else:
        if not flags.on("amend"):
            raise Failure("refusing to amend an existing manifest list with no --amend flag")
    with Remote(cli, insecure=flags.on("insecure")) as remote:
        for argument in arguments[1:]:
            name = _parse(argument)
            drafts.save(target, _entry_for(drafts, remote, target, name))
    line(f"Created manifest list {target}")
    return 0


def _entry_for(drafts: Drafts, remote: Remote, target: str, name: Name) -> Entry:
    """What the list has of the image already, with its annotations, else what the registry has."""
    try:
        entry = drafts.get(target, _full(name))
        if entry.raw:
            return entry
    except NoSuchManifest:
        pass
    fetched = remote.fetch(name)
    if fetched.media_type in LISTS:
        raise Failure(f"{_full(name)} is a manifest list")
    return remote.image(name, fetched)


def annotate(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    target, image = arguments
    target_name = _full(_parse(target, f"annotate: error parsing name for manifest list {target}: "))
    image_name = _full(_parse(image, f"annotate: error parsing name for manifest {image}: "))
    drafts = Drafts(cli.config_directory)
    try:
        entry = drafts.get(target_name, image_name)
    except NoSuchManifest:
        raise Failure(f"manifest for image {image} does not exist in {target}") from None
    platform: dict[str, Any] = {"architecture": "", "os": "", **(entry.platform or {})}
    for flag, key in (("os", "os"), ("arch", "architecture"), ("variant", "variant"), ("os-version", "os.version")):
        if flags.text(flag):
            platform[key] = flags.text(flag)
    features = list(platform.get("os.features") or [])
    platform["os.features"] = list(dict.fromkeys([*features, *flags.texts("os-features")]))
    system, architecture = str(platform["os"]), str(platform["architecture"])
    if architecture not in OS_ARCHES.get(system, "").split():
        raise Failure(f"manifest entry for image has unsupported os/arch combination: {system}/{architecture}")
    descriptor = {**entry.descriptor, "platform": ordered(platform, PLATFORM)}
    drafts.save(target_name, Entry(entry.reference, descriptor, entry.raw))
    return 0


def push(cli: CLI, flags: Flags, arguments: list[str]) -> int:
    drafts, name = Drafts(cli.config_directory), _parse(arguments[0])
    entries = drafts.entries(_full(name))
    if not entries:
        raise Failure(f"{_full(name)} not found")
    for entry in entries:
        platform = entry.platform or {}
        if not platform.get("architecture") or not platform.get("os"):
            raise Failure(f"manifest {entry.reference} must have an OS and Architecture to be pushed to a registry")
    kind, text = list_document(entries, name)
    with Remote(cli, insecure=flags.on("insecure")) as remote:
        registry = remote.registry(name)
        foreign = [entry for entry in entries if entry.name.path != name.path]
        mounts = {(digest, entry.name.path): None for entry in foreign for digest in entry.blobs()}
        for digest, origin in mounts:
            registry.mount(name.path, digest, origin=origin)
        for entry in foreign:
            digest = str(entry.descriptor["digest"])
            pushed = registry.put_manifest(name.path, digest, str(entry.descriptor["mediaType"]), entry.raw)
            line(f"Pushed ref {name.repository}@{digest} with digest: {pushed}")
            flush()
        line(registry.put_manifest(name.path, name.digest or name.tag, kind, text.encode()))
    if flags.on("purge"):
        drafts.remove(_full(name))
    return 0


def rm(cli: CLI, _: Flags, arguments: list[str]) -> int:
    drafts, code = Drafts(cli.config_directory), 0
    for argument in arguments:
        try:
            drafts.remove(_full(_parse(argument)))
        except (DraftError, Failure) as exc:
            warn(str(exc))
            code = 1
    return code


INSECURE = Flag("insecure", "", BOOL, "Allow communication with an insecure registry")
TEXTS = (
    Flag("arch", "", STRING, "Set architecture"),
    Flag("os", "", STRING, "Set operating system"),
    Flag("os-features", "", STRINGS, "Set operating system feature"),
    Flag("os-version", "", STRING, "Set operating system version"),
    Flag("variant", "", STRING, "Set architecture variant"),
)

COMMANDS = {
    "annotate": Command("[OPTIONS] MANIFEST_LIST MANIFEST", _told(annotate), flags=TEXTS, arguments=(2, 2)),
    "create": Command(
        "MANIFEST_LIST MANIFEST [MANIFEST...]",
        _told(create),
        flags=(Flag("amend", "a", BOOL, "Amend an existing manifest list"), INSECURE),
        arguments=(2, UNLIMITED),
    ),
    "inspect": Command(
        "[OPTIONS] [MANIFEST_LIST] MANIFEST",
        _told(inspect),
        flags=(INSECURE, Flag("verbose", "v", BOOL, "Output additional info including layers and platform")),
        arguments=(1, 2),
    ),
    "push": Command(
        "[OPTIONS] MANIFEST_LIST",
        _told(push),
        flags=(
            Flag("insecure", "", BOOL, "Allow push to an insecure registry"),
            Flag("purge", "p", BOOL, "Remove the local manifest list after push"),
        ),
        arguments=(1, 1),
    ),
    "rm": Command("MANIFEST_LIST [MANIFEST_LIST...]", _told(rm), arguments=(1, UNLIMITED)),
}
