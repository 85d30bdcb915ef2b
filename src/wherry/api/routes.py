"""Every endpoint of the API, in one router."""

from wherry.api import (
    archives,
    building,
    check,
    containers,
    events,
    files,
    grpc,
    images,
    missing,
    networks,
    networks_lab,
    pushing,
    registries,
    sessions,
    system,
    updating,
    volumes,
)
from wherry.api.router import Router
from wherry.api.server import Server
from wherry.api.services import Services


def router() -> Router:
    """In this order: of patterns that could both match, the first added wins."""
    found = Router()
    for room in (
        sessions,
        files,
        containers,
        updating,
        pushing,
        registries,
        archives,
        images,
        volumes,
        networks_lab,
        networks,
        events,
        check,
        system,
        grpc,
        building,
        missing,
    ):
        room.add(found)
    return found


def build(services: Services) -> Server:
    """The whole API over `services`; `listeners.serve` gives it sockets."""
    return Server(services, router())
