"""What clients may ask for and this engine does not have: each says so in clear words, none pretends."""

from aiohttp import web

from wherry.api.call import Call
from wherry.api.router import Handler, Router
from wherry.errors import NotFound, NotSupported, Unavailable

NO_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)


def not_yet(what: str) -> Handler:
    """A handler that refuses with 501, naming what is missing."""

    async def refuse(call: Call) -> web.StreamResponse:
        raise NotSupported(f"{what} is not supported by this engine yet")

    return refuse


async def no_manager(call: Call) -> web.StreamResponse:
    raise Unavailable(NO_MANAGER)


async def no_member(call: Call) -> web.StreamResponse:
    raise Unavailable("This node is not part of a swarm")


async def plugins(call: Call) -> web.StreamResponse:
    call.filters()
    return call.reply([])


async def no_plugin(call: Call) -> web.StreamResponse:
    raise NotFound(f'plugin "{call["name"]}" not found')


def add(router: Router) -> None:
    router.add("GET", "/plugins", plugins)
    router.add("GET", "/plugins/privileges", not_yet("plugins"))
    router.add("GET", "/plugins/{name}/json", no_plugin)
    for verb in ("enable", "disable", "set"):
        router.add("POST", f"/plugins/{{name}}/{verb}", no_plugin)
    router.add("DELETE", "/plugins/{name}", no_plugin)
    for path in ("/plugins/pull", "/plugins/create", "/plugins/{name}/upgrade", "/plugins/{name}/push"):
        router.add("POST", path, not_yet("plugins"))

    swarm = not_yet("swarm mode")
    router.add("POST", "/swarm/init", swarm)
    router.add("POST", "/swarm/join", swarm)
    router.add("POST", "/swarm/leave", no_member)
    router.add("GET", "/swarm", no_manager)
    router.add("GET", "/swarm/unlockkey", no_manager)
    router.add("POST", "/swarm/update", no_manager)
    router.add("POST", "/swarm/unlock", no_manager)
    for kind in ("nodes", "services", "tasks", "secrets", "configs"):
        router.add("GET", f"/{kind}", no_manager)
        router.add("POST", f"/{kind}/create", no_manager)
        for method in ("GET", "DELETE", "POST"):
            router.add(method, f"/{kind}/{{name}}", no_manager)
