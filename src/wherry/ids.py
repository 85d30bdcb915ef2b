"""Identifiers of containers, execs, networks: 64 lower-case hex digits, never all digits in the first 12.

Docker's rule (a short id must not look like a number, so that a hostname made from it is valid everywhere).
"""

import os
import re
from typing import NewType

ContainerID = NewType("ContainerID", str)
ExecID = NewType("ExecID", str)
NetworkID = NewType("NetworkID", str)

SHORT = 12  # hex digits shown to people

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_HEX = re.compile(r"[0-9a-f]{1,64}\Z")


def generate() -> str:
    """A new random 64-digit id."""
    while (value := os.urandom(32).hex())[:SHORT].isdigit():
        pass
    return value


def short(value: str) -> str:
    """`sha256:` prefix dropped, then the first 12 digits."""
    return value.removeprefix("sha256:")[:SHORT]


def is_name(value: str) -> bool:
    """True when `value` is allowed as a container, volume or network name: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`."""
    return _NAME.match(value) is not None


def is_prefix(value: str) -> bool:
    """True when `value` can be the beginning of an id."""
    return _HEX.match(value) is not None
