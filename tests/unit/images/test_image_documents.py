"""Manifests, indexes, configs and platforms: what is read, what is refused, which platform is chosen."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagekit.making import digest, index, make
from wherry.errors import InvalidParameter, NotSupported, WherryError
from wherry.spec import image as spec
from wherry.spec.engine import ContainerConfig
from wherry.spec.image import (
    Index,
    Manifest,
    Platform,
    decode_config,
    decode_manifest,
    encode_config,
    format_time,
    normalize,
    parse_platform,
    parse_time,
    runs_on,
    select,
)

D = {"mediaType": spec.OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2}


def encoded(**fields: object) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_a_manifest_of_either_kind_is_read(form):
    made = make([{"a": b"1"}, {"b": b"2"}], form=form)
    manifest = decode_manifest(made.manifest)
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == made.id
    assert [layer.digest for layer in manifest.layers] == made.layer_digests


def test_a_manifest_without_a_media_type_is_known_by_its_shape():
    assert isinstance(decode_manifest(encoded(config=D, layers=[])), Manifest)
    assert isinstance(decode_manifest(encoded(manifests=[])), Index)


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        (b"", InvalidParameter, "manifest is not valid JSON"),
        (b"[]", InvalidParameter, "manifest is not a JSON object"),
        (b"[" * 100_000, InvalidParameter, "manifest is not valid JSON"),
        (b"{}", InvalidParameter, "schemaVersion None"),
        (b'{"schemaVersion": 1}', NotSupported, "schema 1"),
        (encoded(config=D, layers=[], manifests=[]), InvalidParameter, "ambiguous"),
        (encoded(mediaType=spec.OCI_INDEX, layers=[]), InvalidParameter, "index has no manifests"),
        (encoded(mediaType="application/x"), InvalidParameter, "unsupported manifest media type 'application/x'"),
        (encoded(layers=[]), InvalidParameter, "config"),
        (encoded(config={**D, "digest": "md5:1"}, layers=[]), InvalidParameter, "invalid digest 'md5:1'"),
        (encoded(config={**D, "size": -1}, layers=[]), InvalidParameter, "negative size"),
        (encoded(config={**D, "size": "2"}, layers=[]), InvalidParameter, "Expected `int`"),
        (encoded(config=D, layers=[D] * 501), InvalidParameter, "501 layers; the limit is 500"),
        (encoded(manifests=[D] * 4097), InvalidParameter, "4097 entries"),
        (b" " * (spec.MAX_DOCUMENT + 1), InvalidParameter, "the limit is"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_cause(raw, error, words):
    with pytest.raises(error) as caught:
        decode_manifest(raw)
    assert words in caught.value.message


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_otherwise(raw):
    for decode in (decode_manifest, decode_config):
        with contextlib.suppress(WherryError):
            decode(raw)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rootfs": {"type": "other", "diff_ids": []}}, "rootfs of type 'other'"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:xyz"]}}, "invalid diffID 'sha256:xyz'"),
        ({"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * 501}}, "501 layers"),
        ({"config": {"Env": "A=1"}}, "$.config.Env"),
    ],
)
def test_a_bad_config_is_refused_with_its_cause(fields, words):
    with pytest.raises(InvalidParameter) as caught:
        decode_config(json.dumps(fields).encode())
    assert words in caught.value.message


def test_null_in_a_config_means_absent():
    config = decode_config(b'{"os":"linux","config":{"Env":null,"Cmd":null,"Labels":null},"history":null}')
    assert config.config == ContainerConfig()
    assert config.history == []


def test_a_config_written_here_reads_back_and_has_only_what_an_image_carries():
    raw = encode_config(
        config=ContainerConfig(hostname="web", tty=True, env=["A=1"], cmd=["sh"], labels={}),
        platform=Platform(os="linux", architecture="arm", variant="v7"),
        diff_ids=[],
        history=[spec.History(created="2024-01-01T00:00:00Z", comment="c")],
        created="2024-01-01T00:00:00Z",
    )
    assert json.loads(raw)["config"] == {"Env": ["A=1"], "Cmd": ["sh"]}
    config = decode_config(raw)
    assert config.config == ContainerConfig(env=["A=1"], cmd=["sh"])
    assert config.platform == Platform(os="linux", architecture="arm", variant="v7")
    assert config.history[0].comment == "c"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2024-05-06T07:08:09.123456789Z", 1714979289123456789),
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        ("yesterday", 0),
        ("2024-13-40T00:00:00Z", 0),
    ],
)
def test_times_are_read_to_the_nanosecond(text, ns):
    assert parse_time(text) == ns


def test_times_are_written_as_go_does():
    assert format_time(0) == "0001-01-01T00:00:00Z"
    assert format_time(1_000_000_000) == "1970-01-01T00:00:01Z"
    assert format_time(1714979289120000000) == "2024-05-06T07:08:09.12Z"


@given(st.integers(min_value=1, max_value=4_000_000_000_000_000_000))
def test_a_time_survives_writing_and_reading(ns):
    assert parse_time(format_time(ns)) == ns


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AArch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/amd64/v1", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("windows", f"windows/{spec.host_platform().architecture}"),
    ],
)
def test_a_platform_has_one_spelling(text, shown):
    assert str(parse_platform(text)) == shown


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "linux/am d64", "nonsense"])
def test_a_bad_platform_is_refused(text):
    with pytest.raises(InvalidParameter, match=r"platform|operating system"):
        parse_platform(text)


def chosen(wanted: str, *have: str) -> str | None:
    """Which of the images for `have` an index gives on `wanted`."""
    images = {name: make([{"f": name.encode()}]) for name in have}
    entries = []
    for name, made in images.items():
        system, architecture, variant = [*name.split("/"), ""][:3]
        platform = {"os": system, "architecture": architecture, "variant": variant}
        entries.append((made, platform if system != "none" else None))
    raw, _ = index(entries)
    document = decode_manifest(raw)
    assert isinstance(document, Index)
    found = select(document, parse_platform(wanted))
    return next((name for name, made in images.items() if found and made.digest == found.digest), None)


@pytest.mark.parametrize(
    ("wanted", "have", "best"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/arm64"], None),
        ("linux/amd64", ["linux/386", "linux/arm64"], "linux/386"),
        ("linux/amd64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64", ["linux/arm/v5", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", ["unknown/unknown", "none/x"], None),
        ("linux/riscv64", ["linux/riscv64"], "linux/riscv64"),
    ],
)
def test_the_best_platform_of_an_index_is_chosen(wanted, have, best):
    assert chosen(wanted, *have) == best


def test_an_image_for_a_lesser_variant_runs_on_a_greater_one():
    assert runs_on(Platform(os="linux", architecture="arm", variant="v6"), parse_platform("linux/arm/v7"))
    assert not runs_on(Platform(os="linux", architecture="arm64"), parse_platform("linux/amd64"))
    assert normalize(Platform(os="linux", architecture="x86-64")) == Platform(os="linux", architecture="amd64")


def test_the_digest_of_a_written_manifest_is_that_of_its_bytes():
    descriptor = spec.Descriptor(media_type=spec.OCI_CONFIG, digest=digest(b"{}"), size=2)  # type: ignore[arg-type]
    raw = spec.encode_manifest(descriptor, [descriptor])
    assert raw.digest == digest(raw.data)
    again = decode_manifest(raw.data)
    assert isinstance(again, Manifest)
    assert again.layers == [descriptor]
