"""Digests: three kinds that must never mix, and how one is checked.

`Digest` names bytes as stored or sent (a compressed layer, a manifest), `DiffID` the uncompressed tar of a layer,
`ChainID` a stack of layers. All are `sha256:<64 lower-case hex>`.
"""

import hashlib
import re
from collections.abc import Iterable
from typing import NewType

from wherry.errors import InvalidParameter

Digest = NewType("Digest", str)
DiffID = NewType("DiffID", str)
ChainID = NewType("ChainID", str)

_SHAPE = re.compile(r"sha256:[0-9a-f]{64}\Z")


def parse(value: str) -> Digest:
    """Check the shape of `value`; raises InvalidParameter. Only sha256 is spoken."""
    if _SHAPE.match(value) is None:
        raise InvalidParameter(f"invalid digest {value[:100]!r}: want sha256: and 64 lower-case hex digits")
    return Digest(value)


def is_digest(value: str) -> bool:
    return _SHAPE.match(value) is not None


def of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_part(value: Digest | DiffID | ChainID) -> str:
    return value[7:]


def chain_id(diff_ids: Iterable[DiffID]) -> ChainID | None:
    """Fold diffIDs, base first (OCI image-spec, config.md#layer-chainid); None for no layers."""
    chain: ChainID | None = None
    for diff_id in diff_ids:
        chain = extend_chain(chain, diff_id)
    return chain


def extend_chain(parent: ChainID | None, diff_id: DiffID) -> ChainID:
    """The chainID of `diff_id` applied on `parent`."""
    return ChainID(diff_id) if parent is None else ChainID(of(f"{parent} {diff_id}".encode()))
