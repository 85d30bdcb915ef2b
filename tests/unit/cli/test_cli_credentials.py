"""Names of images, and who the user is to a registry."""

import base64
import json
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import wherry as wherry_package
from harness.terminal import Terminal
from wherry.cli.command import CLI
from wherry.cli.credentials import HelperError, auth_for, default_server, encode_auth, erase, store
from wherry.cli.flags import parse
from wherry.cli.main import GLOBAL_FLAGS
from wherry.cli.names import INDEX_SERVER, InvalidReference, parse_name


@pytest.mark.parametrize(
    ("text", "repository", "familiar", "suffix", "server"),
    [
        ("alpine", "docker.io/library/alpine", "alpine", "", INDEX_SERVER),
        ("alpine:3", "docker.io/library/alpine", "alpine", ":3", INDEX_SERVER),
        ("docker.io/library/alpine", "docker.io/library/alpine", "alpine", "", INDEX_SERVER),
        ("index.docker.io/a/b", "docker.io/a/b", "a/b", "", INDEX_SERVER),
        ("user/x:1", "docker.io/user/x", "user/x", ":1", INDEX_SERVER),
        ("ghcr.io/a/b/c:1", "ghcr.io/a/b/c", "ghcr.io/a/b/c", ":1", "ghcr.io"),
        ("localhost/x", "localhost/x", "localhost/x", "", "localhost"),
        ("r:5000/x:1", "r:5000/x", "r:5000/x", ":1", "r:5000"),
        ("x@sha256:" + "a" * 64, "docker.io/library/x", "x", "@sha256:" + "a" * 64, INDEX_SERVER),
        ("x:1@sha256:" + "a" * 64, "docker.io/library/x", "x", ":1@sha256:" + "a" * 64, INDEX_SERVER),
    ],
)
def test_references(text: str, repository: str, familiar: str, suffix: str, server: str) -> None:
    name = parse_name(text)
    assert (name.repository, name.familiar, name.suffix, name.server) == (repository, familiar, suffix, server)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:-x",
        "Foo",
        "a//b",
        "a/",
        "-a",
        "a_",
        "x@bar",
        "x@sha256:zz",
        "a" * 64,
        "b c",
        "a:" + "x" * 129,
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_name(text)


def test_no_tag_means_latest_unless_there_is_a_digest() -> None:
    assert parse_name("a").with_default_tag().suffix == ":latest"
    assert parse_name("a@sha256:" + "a" * 64).with_default_tag().suffix == "@sha256:" + "a" * 64


@pytest.fixture
def cli_with(tmp_path: Path) -> Callable[..., CLI]:
    """A CLI whose config.json says this."""

    def make(config: dict[str, Any] | None = None) -> CLI:
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        flags, _ = parse(["--config", str(tmp_path)], GLOBAL_FLAGS)
        return CLI(flags, {})

    return make


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("auths", "server", "expected"),
    [
        ({}, "r", {}),
        ({"r": {"auth": basic("u:p:q")}}, "r", {"serveraddress": "r", "username": "u", "password": "p:q"}),
        ({"https://r/v1/": {"auth": basic("u:p")}}, "r", {"serveraddress": "r", "username": "u", "password": "p"}),
        ({INDEX_SERVER: {"auth": basic("u:p")}}, INDEX_SERVER,
         {"serveraddress": INDEX_SERVER, "username": "u", "password": "p"}),
        ({"r": {"identitytoken": "t", "auth": basic("u:")}}, "r",
         {"serveraddress": "r", "identitytoken": "t", "username": "u", "password": ""}),
        ({"r": {}}, "r", {}),
        ({"r": {"auth": "!!!"}}, "r", {}),
    ],
)  # fmt: skip
def test_credentials_in_the_file(
    cli_with: Callable[..., CLI], auths: dict[str, Any], server: str, expected: dict[str, str]
) -> None:
    assert auth_for(cli_with({"auths": auths}), server) == expected


HELPER = """#!/bin/sh
action=$1; input=$(cat)
echo "$action $input" >> %(log)s
case "$action:$input" in
  get:r) echo '{"Username":"u","Secret":"s"}';;
  get:token) echo '{"Username":"<token>","Secret":"t"}';;
  get:*) echo "credentials not found in native keychain"; exit 1;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper `mine`; the file in which it writes what it was asked."""
    log = tmp_path / "helper.log"
    program = tmp_path / "docker-credential-mine"
    program.write_text(HELPER % {"log": log})
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return log


def test_a_helper_is_asked_first(cli_with: Callable[..., CLI], helper: Path) -> None:
    cli = cli_with({"credsStore": "mine", "auths": {"other": {"auth": basic("u:p")}}})
    assert auth_for(cli, "r") == {"username": "u", "password": "s", "serveraddress": "r"}
    assert auth_for(cli, "token") == {"identitytoken": "t", "serveraddress": "token"}
    assert auth_for(cli, "other") == {}
    only = cli_with({"credHelpers": {"r": "mine"}, "auths": {"other": {"auth": basic("u:p")}}})
    assert auth_for(only, "r")["username"] == "u"
    assert auth_for(only, "other")["username"] == "u"


def test_storing_with_a_helper_keeps_the_secret_out_of_the_file(
    cli_with: Callable[..., CLI], helper: Path, tmp_path: Path
) -> None:
    assert store(cli_with({"credsStore": "mine"}), "r", "u", "secret!", is_token=False) is None
    assert "secret!" in helper.read_text()
    assert "secret!" not in (tmp_path / "config.json").read_text()
    erase(cli_with(), "r")
    assert helper.read_text().splitlines()[-1] == "erase r"


def test_the_file_is_the_user_s_alone_and_keeps_what_else_it_says(cli_with: Callable[..., CLI], tmp_path: Path) -> None:
    cli = cli_with({"psFormat": "x", "auths": {"https://r/v1/": {"auth": "old"}, "other": {}}})
    path = store(cli, "r", "u", "p", is_token=False)
    assert path == f"{tmp_path}/config.json"
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o600
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["psFormat"] == "x"
    assert kept["auths"]["r"] == {"auth": basic("u:p")}
    erase(cli_with(), "r")
    assert json.loads((tmp_path / "config.json").read_text())["auths"] == {"other": {}}


def test_the_header_is_urlsafe_base64() -> None:
    assert encode_auth({}) == "e30="
    assert base64.urlsafe_b64decode(encode_auth({"password": "ÿ?>"})) == '{"password":"ÿ?>"}'.encode()


@pytest.mark.parametrize(
    ("name", "server"),
    [(None, INDEX_SERVER), ("docker.io", INDEX_SERVER), ("https://r.io/v2/", "r.io"), ("r:5000", "r:5000")],
)
def test_servers(name: str | None, server: str) -> None:
    assert default_server(name) == server


def test_login(fake_engine: Any, reply: Any, wherry: Callable[..., Any], tmp_path: Path) -> None:
    fake_engine.answers["POST /auth"] = [
        reply(200, {"Status": "Login Succeeded", "IdentityToken": ""}),
        reply(401, {"message": "unauthorized: incorrect username or password"}),
    ]
    done = wherry("login", "-u", "me", "--password-stdin", "r:5000", input=b"secret\n")
    assert done.code == 0
    assert done.out == "Login Succeeded\n"
    assert fake_engine.requests[0].body == {"username": "me", "password": "secret", "serveraddress": "r:5000"}
    assert json.loads((tmp_path / "config/config.json").read_text())["auths"]["r:5000"] == {"auth": basic("me:secret")}
    failed = wherry("login", "-u", "me", "-p", "x", "r2")
    assert failed.code == 1
    assert failed.err.endswith("Error response from daemon: unauthorized: incorrect username or password\n")
    assert wherry("logout", "r:5000").out == "Removing login credentials for r:5000\n"
    assert json.loads((tmp_path / "config/config.json").read_text())["auths"] == {}
    assert wherry("login", "-u", "x").err == "Error: Cannot perform an interactive login from a non TTY device\n"


BROKEN = """#!/bin/sh
echo "the keyring is locked"
exit 2
"""


def install(folder: Path, name: str, text: str) -> None:
    program = folder / name
    program.write_text(text)
    program.chmod(0o755)


def test_a_helper_that_fails_is_told_of(
    cli_with: Callable[..., CLI], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    cli = cli_with({"credsStore": "mine"})
    assert auth_for(cli, "r") == {}
    assert 'WARNING: r: error getting credentials - err: exec: "docker-credential-mine": executable file not found' in (
        capfd.readouterr().err
    )
    install(tmp_path, "docker-credential-mine", BROKEN)
    assert auth_for(cli, "r") == {}
    assert capfd.readouterr().err == (
        "WARNING: r: error getting credentials - err: docker-credential-mine: exit status 2, "
        "out: `the keyring is locked`\n"
    )
    with pytest.raises(HelperError, match="error storing credentials - err: docker-credential-mine: exit status 2"):
        store(cli, "r", "u", "p", is_token=False)
    with pytest.raises(HelperError, match="error erasing credentials"):
        erase(cli, "r")
    install(tmp_path, "docker-credential-mine", "#!/bin/sh\necho '[]'\n")
    assert auth_for(cli, "r") == {}
    assert capfd.readouterr().err == "WARNING: r: docker-credential-mine get: its answer is no credentials\n"


def test_a_registry_s_own_helper_goes_before_the_common_one(cli_with: Callable[..., CLI], helper: Path) -> None:
    cli = cli_with({"credsStore": "nowhere", "credHelpers": {"r": "mine"}})
    assert auth_for(cli, "r")["username"] == "u"
    store(cli, "r", "u", "p", is_token=False)
    assert json.loads(helper.read_text().splitlines()[-1].removeprefix("store "))["ServerURL"] == "r"


def test_a_helper_that_is_installed_is_used_where_nothing_is_configured(tmp_path: Path, helper: Path) -> None:
    (tmp_path / "docker-credential-mine").rename(tmp_path / "docker-credential-pass")
    flags, _ = parse(["--config", str(tmp_path)], GLOBAL_FLAGS)

    def cli() -> CLI:
        return CLI(flags, {"PATH": f"{tmp_path}:/usr/bin:/bin"})

    assert auth_for(cli(), "r") == {}  # docker-credential-pass without pass
    install(tmp_path, "pass", "#!/bin/sh\n")
    assert auth_for(cli(), "r")["username"] == "u"
    assert store(cli(), "r", "u", "secret!", is_token=False) is None
    assert json.loads((tmp_path / "config.json").read_text()) == {"auths": {"r": {}}, "credsStore": "pass"}
    (tmp_path / "config.json").write_text('{"auths": {"other": {"auth": "eDp5"}}}')
    assert auth_for(cli(), "r") == {}  # somebody has chosen the file


@pytest.mark.parametrize("text", ["{", "[]", '"auths"'])
def test_a_config_that_cannot_be_read_is_not_written_over(
    fake_engine: Any, reply: Any, wherry: Callable[..., Any], tmp_path: Path, text: str
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(text)
    fake_engine.answers["POST /auth"] = reply(200, {"Status": "Login Succeeded"})
    failed = wherry("login", "-u", "me", "--password-stdin", "r", input=b"secret")
    assert failed.code == 1
    assert "WARNING: Error loading config file" in failed.err
    assert "is left as it is: mend it or move it away first" in failed.err
    assert (tmp_path / "config" / "config.json").read_text() == text


def test_the_config_is_replaced_where_a_link_leads_and_nothing_is_left(
    cli_with: Callable[..., CLI], tmp_path: Path
) -> None:
    real = tmp_path / "elsewhere" / "real.json"
    real.parent.mkdir()
    real.write_text('{"psFormat": "<x>"}')
    (tmp_path / "config.json").symlink_to(real)
    store(cli_with(), "r", "u", "p", is_token=True)
    assert (tmp_path / "config.json").is_symlink()
    kept = json.loads(real.read_text())
    assert kept["auths"]["r"] == {"auth": basic("u:"), "identitytoken": "p"}
    assert kept["psFormat"] == "<x>"
    assert [path.name for path in real.parent.iterdir()] == ["real.json"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--password-stdin", "the --password-stdin option requires --username to be set\n"),
        ("-u a -p b --password-stdin", "conflicting options: cannot specify both --password and --password-stdin\n"),
        ("-u  -p b", "username is empty\n"),
        ("-u a --password=", "password is empty\n"),
    ],
)
def test_flags_of_login_that_contradict_each_other(
    fake_engine: Any, wherry: Callable[..., Any], line: str, said: str
) -> None:
    done = wherry("login", *line.split(" "))
    assert (done.code, done.err) == (1, said)
    assert not fake_engine.requests


def test_stored_credentials_are_tried_first(
    fake_engine: Any, reply: Any, wherry: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps({"auths": {"r": {"auth": basic("me:old")}}}))
    fake_engine.answers["POST /auth"] = [
        reply(200, {"Status": "Login Succeeded", "IdentityToken": "t"}),
        reply(401, {"message": "unauthorized"}),
        reply(500, {"message": "no route"}),
    ]
    done = wherry("login", "r")
    assert (done.code, done.out) == (0, "Login Succeeded\n")
    assert done.err.startswith("Authenticating with existing credentials... [Username: me]\n\n Info -> To login with")
    assert "WARNING! Your credentials" not in done.err  # a token, no password
    assert json.loads((tmp_path / "config" / "config.json").read_text())["auths"]["r"]["identitytoken"] == "t"
    (tmp_path / "config" / "config.json").write_text(json.dumps({"auths": {"r": {"auth": basic("me:old")}}}))
    assert "Stored credentials invalid or expired\nError: Cannot perform an interactive" in wherry("login", "r").err
    assert "Login did not succeed, error: Error response from daemon: no route\n" in wherry("login", "r").err


def test_the_password_is_not_shown_while_it_is_typed(fake_engine: Any, reply: Any, tmp_path: Path) -> None:
    fake_engine.answers["POST /auth"] = reply(200, {"Status": "Login Succeeded"})
    environment = {"WHERRY_HOST": f"unix://{fake_engine.path}", "DOCKER_CONFIG": str(tmp_path / "config")}
    source = Path(wherry_package.__file__).parents[1]
    argv = [sys.executable, "-c", "from wherry.cli.main import main; main()", "login", "r"]
    with Terminal(argv, env={**environment, "PYTHONPATH": str(source)}) as terminal:
        terminal.expect("Username: ")
        terminal.line("me")
        terminal.expect("Password: ")
        terminal.line("hidden word")
        terminal.expect("Login Succeeded")
        assert terminal.wait() == 0
        assert "hidden" not in terminal.screen
    assert fake_engine.requests[0].body == {"username": "me", "password": "hidden word", "serveraddress": "r"}


def test_logins_at_the_same_time_do_not_undo_each_other(cli_with: Callable[..., CLI], tmp_path: Path) -> None:
    early = cli_with({"psFormat": "x"})
    assert early.config == {"psFormat": "x"}  # read, and old by the time it is changed
    servers = [f"r{number}" for number in range(8)]
    clis = [cli_with() for _ in servers]
    with ThreadPoolExecutor(len(servers)) as pool:
        for future in [
            pool.submit(store, cli, server, "u", "p", is_token=False) for cli, server in zip(clis, servers, strict=True)
        ]:
            future.result()
    store(early, "last", "u", "p", is_token=False)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert sorted(kept["auths"]) == ["last", *servers]
    assert kept["psFormat"] == "x"


def test_logging_out_makes_no_configuration(wherry: Callable[..., Any], tmp_path: Path) -> None:
    assert wherry("logout", "r").code == 0
    assert not (tmp_path / "config").exists()
