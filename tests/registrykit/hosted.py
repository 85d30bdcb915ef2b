"""The engine's images behind a registry on the loopback, with all that a test looks at."""

from dataclasses import dataclass, field

from imagekit.pushing import Pusher
from imagekit.world import World
from wherry.daemon.engine_registry import EngineStore
from wherry.images.upkeep.remove import ContainerUse
from wherry.registry.folder import FolderStore

DOMAIN = "registry.test:5000"


@dataclass
class Hosted:
    world: World
    store: EngineStore
    rest: FolderStore
    push: Pusher
    in_use: dict[str, list[ContainerUse]] = field(default_factory=dict)
