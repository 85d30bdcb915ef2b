"""Who the user is to a registry: config.json's `auths`, `credsStore` and `credHelpers`, and X-Registry-Auth.

A helper is a program `docker-credential-NAME` that answers `get`, `store` and `erase` on its standard input. With no
credentials and no helper in config.json, `pass` or `secretservice` is used where it is installed, as docker does.
"""

from __future__ import annotations

import binascii
import os

from wherry.cli.console import warn
from wherry.cli.names import INDEX_SERVER
from wherry.client import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from wherry.cli.command import CLI

TOKEN_USER = "<token>"  # what helpers answer as user name when the secret is an identity token
HELPER_SECONDS = 60


DEFAULT_HELPERS = ("pass", "secretservice")
NOT_FOUND = "credentials not found in native keychain"
DOING = {"get": "getting", "store": "storing", "erase": "erasing"}


class HelperError(Exception):
    """A credential helper refused or is missing."""


class NoCredentials(HelperError):
    """The helper works, and has nothing for this registry."""


def base64url(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode().replace("+", "-").replace("/", "_")


def encode_auth(auth: dict[str, Any]) -> str:
    """The value of X-Registry-Auth."""
    return base64url(jsontext.dumps(auth).encode())


def hostname_of(server: str) -> str:
    """The registry's host, from a key of `auths` in any of its historic forms."""
    return server.removeprefix("http://").removeprefix("https://").partition("/")[0]


def helper_of(cli: CLI, server: str) -> str | None:
    helpers = cli.config.get("credHelpers")
    if isinstance(helpers, dict) and server in helpers:
        return str(helpers[server])
    return default_helper(cli)


def default_helper(cli: CLI) -> str | None:
    """The helper of all registries that have none of their own."""
    config = cli.config
    if store := config.get("credsStore"):
        return str(store)
    if config.get("auths") or config.get("credHelpers"):
        return None
    name = DEFAULT_HELPERS[0 if _is_installed(cli, "pass") else 1]
    return name if _is_installed(cli, f"docker-credential-{name}") else None


def _is_installed(cli: CLI, program: str) -> bool:
    folders = cli.environ.get("PATH", "").split(":")
    return any(folder and os.access(f"{folder}/{program}", os.X_OK) for folder in folders)


def run_helper(name: str, action: str, given: str) -> str:
    """What the helper answers; NoCredentials when it has none, HelperError with what it said when it fails."""
    import subprocess

    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, action], input=given.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise HelperError(
            f'error {DOING[action]} credentials - err: exec: "{program}": executable file not found in $PATH, out: ``'
        ) from None
    except subprocess.TimeoutExpired:
        raise HelperError(
            f"error {DOING[action]} credentials - {program} did not answer within {HELPER_SECONDS} s"
        ) from None
    except OSError as exc:
        raise HelperError(f"error {DOING[action]} credentials - err: {program}: {exc.strerror}, out: ``") from None
    output = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0:
        return output
    if NOT_FOUND in output:
        raise NoCredentials(output)
    output = output or done.stderr.decode("utf-8", "replace").strip()
    raise HelperError(
        f"error {DOING[action]} credentials - err: {program}: exit status {done.returncode}, out: `{output}`"
    )


def auth_for(cli: CLI, server: str) -> dict[str, Any]:
    """The credentials for a registry; {} when there are none. A helper that fails is told of, and has none."""
    if helper := helper_of(cli, server):
        try:
            answer = jsontext.loads(run_helper(helper, "get", server))
            user, secret = str(answer["Username"]), str(answer["Secret"])
        except NoCredentials:
            return {}
        except HelperError as exc:
            warn(f"WARNING: {server}: {exc}")
            return {}
        except (jsontext.JSONError, KeyError, TypeError):
            warn(f"WARNING: {server}: docker-credential-{helper} get: its answer is no credentials")
            return {}
        if user == TOKEN_USER:
            return {"identitytoken": secret, "serveraddress": server}
        return {"username": user, "password": secret, "serveraddress": server} if user else {}
    auths = cli.config.get("auths")
    if not isinstance(auths, dict):
        return {}
    entry = auths.get(server)
    if entry is None:
        entry = next((value for key, value in auths.items() if hostname_of(key) == hostname_of(server)), None)
    return _decode_entry(entry, server) if isinstance(entry, dict) else {}


def _decode_entry(entry: dict[str, Any], server: str) -> dict[str, Any]:
    auth: dict[str, Any] = {"serveraddress": server}
    for name in ("username", "password", "identitytoken", "registrytoken"):
        if entry.get(name):
            auth[name] = entry[name]
    if encoded := entry.get("auth"):
        try:
            user, colon, password = binascii.a2b_base64(str(encoded)).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return {}
        if colon:
            auth["username"], auth["password"] = user, password.rstrip("\0")
    return auth if len(auth) > 1 else {}


def registry_header(cli: CLI, server: str) -> dict[str, str]:
    return {"X-Registry-Auth": encode_auth(auth_for(cli, server))}


def change_config(cli: CLI, change: Callable[[dict[str, Any]], None]) -> None:
    """Have `change` alter config.json as it is now; it is replaced in one step, readable by the user alone.

    Others who log in at the same time wait for each other: none undoes what another has done.
    """
    import fcntl

    directory = cli.config_directory
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = cli.read_config()
        if cli.config_broken:
            raise OSError(
                f"{directory}/config.json cannot be read, and is left as it is: mend it or move it away first"
            )
        former = jsontext.dumps(config)
        change(config)
        if jsontext.dumps(config) != former:
            _replace(os.path.realpath(f"{directory}/config.json"), config)
    finally:
        os.close(lock)


def _replace(path: str, config: dict[str, Any]) -> None:
    text = jsontext.indent(jsontext.dumps(config, html=True), "\t")
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def store(cli: CLI, server: str, user: str, secret: str, *, is_token: bool) -> str | None:
    """Remember credentials; the path of the file when they are in it unencrypted, None when a helper has them."""
    helper = helper_of(cli, server)
    entry: dict[str, str] = {}
    if helper:
        given = {"ServerURL": server, "Username": TOKEN_USER if is_token else user, "Secret": secret}
        run_helper(helper, "store", jsontext.dumps(given))
    elif is_token:
        entry = {"auth": _basic(user, ""), "identitytoken": secret}
    else:
        entry = {"auth": _basic(user, secret)}
    is_default = helper is not None and helper == default_helper(cli)

    def remember(config: dict[str, Any]) -> None:
        if is_default:
            config["credsStore"] = helper
        config["auths"] = {**(config.get("auths") or {}), server: entry}

    change_config(cli, remember)
    return None if helper else f"{cli.config_directory}/config.json"


def _basic(user: str, password: str) -> str:
    return binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()


def erase(cli: CLI, server: str) -> None:
    """Forget credentials, in every form of the registry's name."""
    if helper := helper_of(cli, server):
        try:
            run_helper(helper, "erase", server)
        except NoCredentials:
            pass  # forgotten already
    host = hostname_of(server)

    def forget(config: dict[str, Any]) -> None:
        auths = config.get("auths") or {}
        kept = {key: value for key, value in auths.items() if key != server and hostname_of(key) != host}
        if kept != auths:
            config["auths"] = kept

    if os.path.isdir(cli.config_directory):
        change_config(cli, forget)


def default_server(name: str | None) -> str:
    """Docker Hub for no name and for its own names; a URL loses its scheme and path."""
    if not name or name in ("docker.io", "index.docker.io", "registry-1.docker.io", INDEX_SERVER):
        return INDEX_SERVER
    return hostname_of(name)
