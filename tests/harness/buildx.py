"""The docker CLI with buildx and Compose: `docker build`, `docker buildx` and `docker compose` speak gRPC to the engine.

The plugins are those of scripts/real-clients. They live in a configuration of their own: beside a CLI without them,
whose `docker build` is the classic one.
"""

from .engine import REPOSITORY, Cli, Engine
from .needs import missing

PLUGINS = REPOSITORY / ".tools/newer/cli-plugins"


def docker_with_plugins(engine: Engine) -> Cli:
    """The stock `docker` that has buildx and Compose; bound to this engine's own builder."""
    for name in ("docker-buildx", "docker-compose"):
        if not (PLUGINS / name).exists():
            missing(name, "`scripts/real-clients` brings it")
    config = engine.root / "cli-plugins-config"
    config.mkdir(exist_ok=True)
    link = config / "cli-plugins"
    if not link.is_symlink():
        link.symlink_to(PLUGINS)
    cli = Cli("docker", engine.host, config)
    cli.env |= {"BUILDKIT_PROGRESS": "plain", "COMPOSE_STATUS_STDOUT": "1"}
    return cli


def docker_classic(engine: Engine) -> Cli:
    """The stock `docker` whose `docker build` is `POST /build`."""
    cli = Cli("docker", engine.host, engine.root / "cli")
    cli.env |= {"DOCKER_BUILDKIT": "0"}
    return cli
