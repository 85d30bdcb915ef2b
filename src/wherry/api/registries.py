"""What other machines have: /auth, /images/search, /distribution/{name}/json; and what /info says of registries."""

import msgspec
from aiohttp import web

from wherry.api.call import Call
from wherry.api.images import credentials
from wherry.api.router import Router
from wherry.distribution.config import RegistryConfig
from wherry.distribution.login import login
from wherry.distribution.look import look
from wherry.distribution.proxy import masked
from wherry.distribution.search import DEFAULT_LIMIT, Wish, search
from wherry.errors import InvalidParameter
from wherry.reference import DEFAULT_DOMAIN, is_identifier, parse
from wherry.spec.distribution import Auth


def add(router: Router) -> None:
    router.add("POST", "/auth", auth)
    router.add("GET", "/images/search", search_)
    router.add("GET", "/distribution/{name}/json", distribution)


async def auth(call: Call) -> web.StreamResponse:
    """`docker login`: the credentials are checked, and kept by the client only."""
    try:
        given = msgspec.json.decode(await call.json() or b"{}", type=Auth)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise InvalidParameter(f"invalid JSON: {exc}") from exc
    token = await login(call.services.images.registry, given)
    return call.reply({"IdentityToken": token, "Status": "Login Succeeded"})


async def search_(call: Call) -> web.StreamResponse:
    filters = call.filters()
    filters.check(("is-automated", "is-official", "stars"))
    automated = filters.boolean("is-automated", False)
    official = filters.boolean("is-official", False) if "is-official" in filters else None
    try:
        stars = max((int(value) for value in filters.get("stars")), default=0)
    except ValueError:
        raise filters.invalid("stars") from None
    limit = call.number("limit")
    wish = Wish(limit=DEFAULT_LIMIT if limit is None else limit, official=official, stars=stars)
    found = await search(call.services.images.registry, call.text("term"), wish, credentials(call))
    return call.reply([] if automated else found)  # Docker's words: nothing is automated any more


async def distribution(call: Call) -> web.StreamResponse:
    if is_identifier(call["name"]):
        raise InvalidParameter(f"unknown image reference format: {call['name']}")
    descriptor, platforms = await look(call.services.images.registry, parse(call["name"]), credentials(call))
    return call.reply({"Descriptor": descriptor, "Platforms": platforms})


def describe(config: RegistryConfig) -> dict[str, object]:
    """The part of /info: networks apart from single hosts, as clients expect them; proxies without their passwords."""
    networks = [entry for entry in config.insecure if "/" in entry]
    insecure = [entry for entry in config.insecure if "/" not in entry]
    insecure += [name for name, host in config.hosts.items() if host.insecure]
    known = {
        name: {
            "Name": name,
            "Mirrors": config.mirrors_of(name),
            "Secure": name not in insecure,
            "Official": name == DEFAULT_DOMAIN,
        }
        for name in dict.fromkeys([DEFAULT_DOMAIN, *insecure, *config.hosts])
    }
    return {
        "RegistryConfig": {
            "InsecureRegistryCIDRs": list(dict.fromkeys(["::1/128", "127.0.0.0/8", *networks])),
            "IndexConfigs": known,
            "Mirrors": config.mirrors_of(DEFAULT_DOMAIN),
        },
        "HttpProxy": masked(config.proxies.http),
        "HttpsProxy": masked(config.proxies.https),
        "NoProxy": config.proxies.no,
    }
