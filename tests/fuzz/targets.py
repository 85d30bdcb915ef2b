"""What is fuzzed: by name, a function of bytes that returns, or raises what a person gets to read (WherryError).

Anything else that comes out of it is a bug, and so is an `assert` that does not hold.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from google.protobuf.message import DecodeError
from grpclib.exceptions import GRPCError

from wherry.builder.contexts import ContextPool, Mirror
from wherry.builder.dockerfile.ignore import Patterns, read_ignore
from wherry.builder.dockerfile.lint import checks_of, lint
from wherry.builder.dockerfile.outline import lint_result, outline, targets
from wherry.builder.dockerfile.stages import parse_dockerfile
from wherry.builder.dockerfile.words import expand
from wherry.builder.graph import walk
from wherry.buildkit import bk_pb2 as pb
from wherry.buildkit.filesync import Receiver
from wherry.buildkit.llb import load as load_llb
from wherry.buildkit.wire import split
from wherry.digest import Digest, of
from wherry.distribution.auth import parse_challenges
from wherry.errors import InvalidParameter, NotFound, WherryError
from wherry.filters import parse as parse_filters
from wherry.images.archives.contents import find_images
from wherry.images.archives.spool import Archive, File
from wherry.images.leases import Lease
from wherry.kernel.files import closing
from wherry.network.dns import answers as dns_answers
from wherry.network.dns import message as dns_message
from wherry.network.dns.names import Names, View
from wherry.reference import parse as parse_reference
from wherry.spec.distribution import decode_auth
from wherry.spec.image import (
    Index,
    Manifest,
    decode_config,
    decode_manifest,
    decode_platform,
    host_platform,
    parse_platform,
    parse_time,
    runs_on,
    select,
)
from wherry.storage.archive import TarReader, normalize, parse_pax, show
from wherry.storage.compare import differences
from wherry.storage.compression import (
    HEAD,
    Compression,
    Limits,
    Source,
    ZlibDecompressor,
    decompress,
    detect,
    members,
    pieces,
)
from wherry.storage.extract import Extractor, Whiteouts
from wherry.storage.tree import remove_tree
from wherry.storage.verify import Verifier

SHOWN = 1 << 20  # bytes of one member's content that are looked at; a sparse one may be endless

Outcome = Sequence[tuple[object, ...]] | str


def tar(data: bytes) -> None:
    """Members are the same whatever the pieces in which the archive comes."""
    whole, cut = _members([data]), _members([data[at : at + 100] for at in range(0, len(data), 100)])
    assert whole == cut, (whole, cut)


def _members(chunks: Sequence[bytes]) -> Outcome:
    found: list[tuple[object, ...]] = []
    try:
        reader = TarReader(chunks, max_headers=1000)
        for entry in reader:
            assert b"\0" not in entry.name
            assert entry.size >= 0
            assert 0 <= entry.mode <= 0o7777
            path: object
            try:
                path = normalize(entry.name)
                assert not {b"..", b".", b""} & set(path.split(b"/")[:-1]), path
            except InvalidParameter as exc:
                path = exc.message
            fields = (entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime, entry.link, entry.major)
            content = b""
            if entry.size <= SHOWN:
                content = b"".join(reader.data())
                assert len(content) == entry.size
            elif entry.sparse is None:
                for _ in reader.stored():
                    pass
            else:
                for _ in islice(reader.data(), 4):
                    pass
            found.append((show(entry.name), path, *fields, dict(entry.xattrs), content))
    except InvalidParameter as exc:
        return exc.message
    return found


def layer(data: bytes) -> None:
    """Whatever a layer says, it becomes the same tree each time, and only the directory it goes to is touched."""
    with tempfile.TemporaryDirectory(prefix="wherry-fuzz-") as scratch:
        around = Path(scratch)
        trees = [around / "x" / name for name in ("one", "other")]
        for tree in trees:
            tree.mkdir(parents=True)
        (around / "canary").write_text("canary")
        try:
            for tree in trees:
                with closing(os.open(tree, os.O_RDONLY | os.O_DIRECTORY)) as root:
                    Extractor(root, whiteouts=Whiteouts.APPLY).extract(TarReader([data], max_headers=300))
            assert list(differences(*trees, contents=False)) == []
            with closing(os.open(trees[0], os.O_RDONLY | os.O_DIRECTORY)) as root:
                Verifier(root, whiteouts=Whiteouts.APPLY, below=None, contents=True).verify(TarReader([data]))
        finally:
            assert sorted(os.listdir(around)) == ["canary", "x"]
            assert sorted(os.listdir(around / "x")) == ["one", "other"]
            assert (around / "canary").read_text() == "canary"
            remove_tree(around / "x")


def pax(data: bytes) -> None:
    for key, value in parse_pax(data, "archive").items():
        assert key
        assert isinstance(value, bytes)


_TYPES = ("", "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.v2+json")


def manifest(data: bytes) -> None:
    for media_type in _TYPES:
        with contextlib.suppress(WherryError):
            document = decode_manifest(data, media_type)
            parts = [document.config, *document.layers] if isinstance(document, Manifest) else document.manifests
            assert all(part.size >= 0 and part.digest.startswith("sha256:") for part in parts)
            if isinstance(document, Index):
                select(document, host_platform())


def config(data: bytes) -> None:
    found = decode_config(data)
    assert isinstance(found.created_ns, int)
    runs_on(found.platform, host_platform())


def reference(data: bytes) -> None:
    """A name that is accepted means the same when it is written down and read again, long or short."""
    found = parse_reference(data.decode("utf-8", "surrogateescape"))
    assert parse_reference(str(found)) == found
    assert parse_reference(found.familiar) == found
    found.tagged().with_digest(of(b""))


def platform(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    parse_time(text)
    with contextlib.suppress(WherryError):
        runs_on(parse_platform(text), host_platform())
    runs_on(decode_platform(text), host_platform())


def compression(data: bytes) -> None:
    """Two libraries that read gzip agree on what they both accept; nothing grows beyond its limits."""
    limits = Limits(max_bytes=1 << 24)
    first = _inflated(pieces(decompress(_reader(data)), limits, lambda: len(data)))
    if detect(data[:HEAD]) is Compression.GZIP:
        source = Source(b"", _reader(data))
        plain = members(source, ZlibDecompressor, "archive", Compression.GZIP)
        second = _inflated(pieces(plain, limits, lambda: len(data)))
        assert first is None or second is None or first == second


def _inflated(chunks: Iterator[bytes]) -> bytes | None:
    try:
        return b"".join(chunks)
    except InvalidParameter:
        return None


def _reader(data: bytes) -> Callable[[int], bytes]:
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        piece = data[at : at + size]
        at += len(piece)
        return piece

    return read


def challenge(data: bytes) -> None:
    for found in parse_challenges(data.decode("latin-1").split("\n")):
        assert found.scheme == found.scheme.lower() != ""


def auth(data: bytes) -> None:
    decode_auth(data.decode("utf-8", "surrogateescape"))


def filters(data: bytes) -> None:
    parse_filters(data.decode("utf-8", "surrogateescape"))


class _NoBlobs:
    def size(self, blob: Digest) -> int:
        raise NotFound(blob)


def docker_archive(data: bytes) -> None:
    """Documents of an archive: index.json, manifest.json and whatever they name, cut out of the input at NUL bytes."""
    archive = Archive()
    for name, content in zip(("index.json", "manifest.json", "a", "b"), data.split(b"\0"), strict=False):
        if content:
            archive.add(name, File(of(content), len(content), detect(content[:HEAD]), content))
    with contextlib.suppress(WherryError):
        for bundle in find_images(archive, _NoBlobs(), Lease(_NO_GUARD), held={}):  # type: ignore[arg-type]
            assert bundle.images


_NO_GUARD: object = None


def dockerfile(data: bytes) -> None:
    """Read, checked and asked."""
    found = parse_dockerfile(data)
    lint_result("Dockerfile", data, lint(found, checks=checks_of(found)))
    targets(found)
    outline(found)


def words(data: bytes) -> None:
    """The escape character, the values of $a and $b, and a text, cut out of the input at NUL characters."""
    escape, a, b, text, *_ = [*data.decode("utf-8", "replace").split("\0"), "", "", "", ""]
    told = expand(text, {"a": a, "b": b}, escape="`" if escape else "\\")
    assert told.missed <= told.unset
    assert told.used <= {"a", "b"}


def ignore(data: bytes) -> None:
    """Paths, behind the first NUL byte, and patterns before it."""
    patterns, _, paths = data.partition(b"\0")
    matcher = Patterns(read_ignore(patterns))
    for path in paths.decode("utf-8", "surrogateescape").split("\0")[:20]:
        if matcher.matches(path):
            matcher.skips_below(path)


def llb(data: bytes) -> None:
    """A graph as BuildKit's clients send it."""
    definition = pb.Definition()
    with contextlib.suppress(DecodeError):
        definition.ParseFromString(data)
    output = load_llb(definition, entitlements=frozenset({"network.host", "security.insecure", "device"}))
    assert output is None or walk([output])


def filesync(data: bytes) -> None:
    """The packets of a client that sends its directory, each behind gRPC's five bytes."""
    with tempfile.TemporaryDirectory() as folder:
        slot = ContextPool(Path(folder, "pool")).acquire("key")
        mirror = Mirror(slot)
        try:
            messages, _ = split(data)
            receiver = Receiver(mirror)
            receiver.feed(messages)
            if receiver.complete:
                receiver.finish()
        except GRPCError:
            return
        finally:
            mirror.close()
            assert os.listdir(folder) == ["pool"]
            assert set(os.listdir(slot.root)) <= {"files", "slot"}


def dns(data: bytes) -> None:
    """A question of a container, or what another server answered."""
    names, view = Names(), View(networks=[("1", "net")])
    names.add("1", "e", ["web", "a.b"], ["172.20.0.2", "fd00::2"])
    with contextlib.suppress(dns_message.MalformedError):
        for address, ttl in dns_message.addresses(data):
            assert address
            assert 0 <= ttl < 1 << 32
    reply: bytes | None
    try:
        query = dns_message.parse_query(data)
    except dns_message.MalformedError:
        reply = dns_message.refuse_unread(data)
    else:
        reply = dns_answers.answer(names, view, query, limit=query.udp_limit)
    if reply is not None:
        assert reply[:2] == data[:2]
        assert reply[2] & 0x80
        assert len(reply) <= dns_message.SIZE_LIMIT


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        tar,
        layer,
        pax,
        manifest,
        config,
        reference,
        platform,
        compression,
        challenge,
        auth,
        filters,
        docker_archive,
        dockerfile,
        words,
        ignore,
        llb,
        filesync,
        dns,
    )
}


def run(name: str, data: bytes) -> None:
    """One input: returns when the answer is one a person can read."""
    with contextlib.suppress(WherryError):
        TARGETS[name](data)
