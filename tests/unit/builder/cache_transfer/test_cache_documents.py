"""The documents build cache travels in."""

import contextlib
import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.builder.export import cache_export, cache_import
from wherry.builder.export.cache_manifest import (
    CONFIG,
    MOUNT,
    Checksum,
    Contents,
    Record,
    decode,
    inline,
    pack,
)
from wherry.builder.options import CacheTransfer
from wherry.builder.trees import Tree, TreeLayer
from wherry.digest import DiffID, extend_chain, of
from wherry.errors import InvalidParameter, NotSupported, WherryError
from wherry.spec.image import DOCKER_LAYER_GZIP, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor


def blob(name: str, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    return Descriptor(media_type=media_type, digest=of(name.encode()), size=len(name))


def tree(*names: str, held: bool = True) -> tuple[TreeLayer, ...]:
    layers: list[TreeLayer] = []
    for name in names:
        diff_id = DiffID(of(f"plain {name}".encode()))
        chain = extend_chain(layers[-1].chain if layers else None, diff_id)
        made = TreeLayer(
            chain=chain, diff_id=diff_id, size=7, blob=blob(name) if held else None, created_by=f"RUN {name}"
        )
        layers.append(made)
    return tuple(layers)


def key(name: str) -> str:
    return of(f"key {name}".encode())


CONTENTS = Contents(
    records=[
        Record(key=key("a"), outputs={0: tree("base", "a")}, description="[2/3] RUN a", created=5),
        Record(key=key("b"), outputs={0: tree("base", "a", "b"), 2: ()}, created=6),
        Record(key=key("gone"), outputs={0: tree("x", "y", held=False)}, kept=False, created=7),
    ],
    checksums=[Checksum(key=key("copy"), chain=tree("base", "a")[-1].chain, checksum="sum")],
    mounts={"pip": blob("pip", MOUNT)},
)


def test_what_is_packed_is_what_is_read() -> None:
    packed = pack(CONTENTS)
    manifest = json.loads(packed.manifest.data)
    assert manifest["mediaType"] == OCI_MANIFEST
    assert manifest["config"] == {"mediaType": CONFIG, "digest": of(packed.config), "size": len(packed.config)}
    assert {each["digest"] for each in manifest["layers"]} == {of(name) for name in (b"base", b"a", b"b", b"pip")}
    found = decode(packed.config, packed.parsed.layers)
    assert {record.key: record for record in found.records} == {record.key: record for record in CONTENTS.records}
    assert found.checksums == CONTENTS.checksums
    assert found.mounts == CONTENTS.mounts


def test_the_same_contents_are_the_same_bytes() -> None:
    turned = replace(CONTENTS, records=CONTENTS.records[::-1])
    assert pack(turned) == pack(CONTENTS)


def test_dockers_media_types_when_asked() -> None:
    manifest = json.loads(pack(CONTENTS, docker_types=True).manifest.data)
    assert manifest["mediaType"] == DOCKER_MANIFEST
    assert [each["mediaType"] for each in manifest["layers"]] == [DOCKER_LAYER_GZIP] * 3 + [MOUNT]


def test_a_record_without_all_its_blobs_is_not_kept() -> None:
    half = (*tree("base"), replace(tree("base", "a")[1], blob=None))
    packed = pack(Contents(records=[Record(key=key("a"), outputs={0: half})]))
    (record,) = decode(packed.config, packed.parsed.layers).records
    assert not record.kept
    assert record.outputs[0][-1].chain == tree("base", "a")[-1].chain


def test_a_cache_that_is_too_large_loses_its_oldest_records() -> None:
    records = [
        Record(key=key(str(number)), outputs={0: tree(str(number))}, description="d" * 900, created=number)
        for number in range(8000)
    ]
    packed = pack(Contents(records=records))
    assert len(packed.config) <= MAX_DOCUMENT
    found = {record.key for record in decode(packed.config, packed.parsed.layers).records}
    assert key("7999") in found
    assert key("0") not in found
    assert len(found) > 2000


def test_an_image_carries_what_its_own_layers_are_the_result_of() -> None:
    image = Tree(tree("base", "a", held=False))
    data = inline(CONTENTS, image)
    layers = [blob("packed base"), blob("packed a")]
    found = {record.key: record for record in decode(data, layers).records}
    assert found[key("a")].kept
    assert [layer.blob for layer in found[key("a")].outputs[0]] == layers
    assert not found[key("b")].kept
    assert found[key("b")].outputs[0][-1].chain == tree("base", "a", "b")[-1].chain
    assert decode(data, layers).checksums == CONTENTS.checksums


BAD = [
    (b"", "cannot be read"),
    (b"[]", "cannot be read"),
    (b'{"version":"1"}', "cannot be read"),
    (b'{"layers":[{"diff_id":"x"}]}', "invalid diffID 'x'"),
    (b'{"layers":[{"diff_id":"x","parent":0}]}', "stands on layer 0"),
    (b'{"layers":[{"diff_id":"x","parent":-2}]}', "stands on layer -2"),
    (json.dumps({"layers": [{"diff_id": of(b""), "blob": 5}]}).encode(), "names blob 5, and its manifest has 1"),
    (json.dumps({"records": [{"key": key("a"), "outputs": {"0": 0}}]}).encode(), "results in layer 0"),
    (json.dumps({"records": [{"key": key("a"), "outputs": {"-1": -1}}]}).encode(), "results in layer -1"),
    (json.dumps({"records": [{"key": "a", "outputs": {}}]}).encode(), "invalid key 'a'"),
    (json.dumps({"checksums": [{"key": key("a"), "chain": "c", "checksum": "s"}]}).encode(), "invalid checksum"),
    (json.dumps({"mounts": [{"id": "a", "blob": -1}]}).encode(), "names blob -1"),
    (b"[" * 100_000, "cannot be read"),
    (b" " * (MAX_DOCUMENT + 1), "the limit is"),
    (json.dumps({"records": [{"key": key("a"), "outputs": {}}] * 10_001}).encode(), "more than 10000 entries"),
    (
        json.dumps({"layers": [{"diff_id": of(b""), "parent": number - 1} for number in range(501)]}).encode(),
        "more than 500 layers",
    ),
]


@pytest.mark.parametrize(("data", "words"), BAD, ids=[words for _, words in BAD])
def test_a_document_that_is_wrong_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        decode(data, [blob("one")])
    assert words in refused.value.message


def test_a_later_version_is_said_so() -> None:
    with pytest.raises(NotSupported, match="version 2"):
        decode(b'{"version":2}', [])


@given(
    st.recursive(
        st.none() | st.integers(-3, 3) | st.sampled_from(["", key("a"), of(b"x"), "scratch"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["layers", "records", "key", "outputs", "0", "diff_id", "parent", "blob"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_document_has_an_answer(value: object) -> None:
    with contextlib.suppress(WherryError):
        decode(msgspec.json.encode(value), [blob("one")])


EXPORTS = [
    ("registry", {}, InvalidParameter, "registry cache exporter requires ref"),
    ("registry", {"ref": "UPPER"}, InvalidParameter, "must be lowercase"),
    ("registry", {"ref": "x@" + of(b"")}, InvalidParameter, "cannot be exported to a digest"),
    ("registry", {"ref": "x", "mode": "middle"}, InvalidParameter, 'unsupported cache mode "middle"'),
    ("registry", {"ref": "x", "compression": "estargz"}, NotSupported, "estargz"),
    ("registry", {"ref": "x", "ignore-error": "maybe"}, InvalidParameter, "non-bool value"),
    ("local", {}, InvalidParameter, "local cache exporter requires dest"),
    ("gha", {}, NotSupported, 'unknown cache exporter: "gha"'),
    ("nosuch", {}, InvalidParameter, 'unknown cache exporter: "nosuch"'),
]
IMPORTS = [
    ("registry", {}, InvalidParameter, "registry cache importer requires ref"),
    ("local", {"src": "d"}, InvalidParameter, "local cache importer requires explicit digest"),
    ("local", {"digest": of(b"")}, InvalidParameter, "local cache importer requires src"),
    ("s3", {}, NotSupported, 'unknown cache importer: "s3"'),
    ("nosuch", {}, InvalidParameter, 'unknown cache importer: "nosuch"'),
]


@pytest.mark.parametrize(("kind", "attributes", "error", "words"), EXPORTS)
def test_an_export_that_can_never_work_is_refused_before_the_build(
    kind: str, attributes: dict[str, str], error: type[WherryError], words: str
) -> None:
    with pytest.raises(error) as refused:
        cache_export.check(CacheTransfer(type=kind, attributes=attributes))
    assert words in refused.value.message


@pytest.mark.parametrize(("kind", "attributes", "error", "words"), IMPORTS)
def test_an_import_that_can_never_work_is_refused(
    kind: str, attributes: dict[str, str], error: type[WherryError], words: str
) -> None:
    with pytest.raises(error) as refused:
        cache_import.check(CacheTransfer(type=kind, attributes=attributes))
    assert words in refused.value.message


def test_what_can_work_is_accepted() -> None:
    full = {"ref": "x", "mode": "max", "image-manifest": "true", "compression": "zstd", "ignore-error": "true"}
    for kind, attributes in (("registry", full), ("local", {"dest": "d"}), ("inline", {})):
        cache_export.check(CacheTransfer(type=kind, attributes=attributes))
