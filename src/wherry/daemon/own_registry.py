"""The registry inside the engine, when daemon.json has `"registry": {...}`."""

import logging
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from wherry.aio import settle
from wherry.containers.views.image_users import ImageUsers
from wherry.daemon.config import Config
from wherry.daemon.engine import Engine
from wherry.daemon.engine_registry import EngineStore
from wherry.images.garbage import collect_all
from wherry.registry import config as registry_config
from wherry.registry.main import open_server
from wherry.registry.upkeep.collect import Collected, forget

log = logging.getLogger(__name__)


async def open_registry(config: Config, engine: Engine, down: AsyncExitStack) -> None:
    """Serve it until `down` is unwound; nothing happens without the key. Raises InvalidParameter, Failed."""
    if config.registry is None:
        return
    settings = registry_config.convert(config.registry, "registry")
    name = settings.name or settings.listen[0]
    images, containers = engine.services.images, engine.services.containers
    store = EngineStore(images, engine.rest, domain=name, in_use=ImageUsers(containers.store))
    root = Path(config.data_root) / "registry"
    await settle(lambda: root.mkdir(mode=0o700, exist_ok=True))
    settings = msgspec.structs.replace(settings, root=str(root), name=name)

    async def collect(delete_untagged: bool, grace: float) -> Collected:
        forgotten = await forget(engine.rest, delete_untagged=delete_untagged, grace=grace)
        removed = await collect_all(images)
        return Collected(
            manifests=forgotten.manifests,
            blobs=forgotten.blobs,
            files=len(removed.digests),
            bytes=removed.bytes,
        )

    _, places = await open_server(settings, store, engine.rest, engine.background, down, collector=collect)
    for address in places:
        log.info("registry %s listens on http%s://%s", name, "s" if settings.tls else "", address)
