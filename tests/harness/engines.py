"""Which engine the compat tests are about, and what it needs on this machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .box import Box
from .engine import WHERRY, Engine
from .needs import ENGINE, missing, require_programs

EngineMaker = Callable[..., Engine]


def new_engine(box: Box, root: Path, **kwargs: Any) -> Engine:
    require_programs("docker", "nft", "nsenter", "unshare")
    if ENGINE == "dockerd":
        require_programs("dockerd")
    elif not WHERRY.exists():
        missing(str(WHERRY), "`make install` makes it")
    return Engine(box, root, kind=ENGINE, **kwargs)
