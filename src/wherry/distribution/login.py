"""login: are these credentials good at this registry?"""

from wherry.distribution.config import RegistryConfig, endpoints
from wherry.distribution.endpoint import connect
from wherry.distribution.errors import Refused, Unreachable
from wherry.errors import Failed, InvalidParameter, Unauthorized
from wherry.reference import DEFAULT_DOMAIN, LEGACY_DOMAIN
from wherry.spec.distribution import Auth


def domain_of(address: str) -> str:
    """The registry behind a server address as clients write it: `https://index.docker.io/v1/`, `host:5000`, ""."""
    host = address.partition("://")[2] if "://" in address else address
    host = host.partition("/")[0]
    return DEFAULT_DOMAIN if host in ("", LEGACY_DOMAIN, DEFAULT_DOMAIN) else host


async def login(config: RegistryConfig, auth: Auth) -> str:
    """Ask the registry `auth.serveraddress` for something that takes these credentials.

    Answers an identity token to be used instead of the password from now on, when the token server gives one, else "".
    Raises Unauthorized when it refuses them, Unreachable or Failed when it cannot be asked. A registry that asks
    nobody for credentials takes all of them.
    """
    domain = domain_of(auth.serveraddress)
    if any(char.isspace() or char in "@?#\\" for char in domain):
        raise InvalidParameter(f"invalid registry address: {auth.serveraddress[:200]!r}")
    first: Unreachable | None = None
    for endpoint in await endpoints(config, domain, mirrors=False):
        try:
            async with connect(config, endpoint, auth, offline=True) as connection:
                await connection.ping()
                async with connection.request("GET", "/v2/"):
                    return connection.identity_token
        except Unreachable as exc:
            first = first or exc
        except Refused as exc:
            if exc.status in (401, 403):
                raise Unauthorized(f'Get "{endpoint.base}/v2/": {exc.message}') from exc
            raise
    raise first or Failed(f"no registry at {domain}")
