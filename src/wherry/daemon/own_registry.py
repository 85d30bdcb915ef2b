"""The registry inside the engine, when daemon.json has `"registry": {...}`."""

import logging
from contextlib import AsyncExitStack

from wherry.containers.views.image_users import ImageUsers
from wherry.daemon.config import Config
from wherry.daemon.engine import Engine
from wherry.daemon.engine_registry import EngineStore
from wherry.registry import config as registry_config
from wherry.registry.main import open_server

log = logging.getLogger(__name__)


async def open_registry(config: Config, engine: Engine, down: AsyncExitStack) -> None:
    """Serve it until `down` is unwound; nothing happens without the key. Raises InvalidParameter, Failed."""
    if config.registry is None:
        return
    settings = registry_config.convert(config.registry, "registry")
    name = settings.name or settings.listen[0]
    images, containers = engine.services.images, engine.services.containers
    store = EngineStore(images, engine.rest, domain=name, in_use=ImageUsers(containers.store))
    for address in await open_server(settings, store, engine.rest, engine.background, down):
        log.info("registry %s listens on http://%s", name, address)
