"""The configuration of `wherry registry serve`, and what is said when it cannot be used."""

from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidParameter
from wherry.registry.config import Address, parse_address, parse_serve
from wherry.registry.lock import FolderLock
from wherry.registry.main import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "registry.json"
    path.write_text('{"root": "/srv/registry", "listen": ["127.0.0.1:5000", "[::1]:5000"], "log-level": "debug"}')
    return path


def test_keys_come_from_the_file(file: Path):
    config, validate = parse_serve(["--config", str(file)])
    assert (config.root, config.listen, config.log_level) == (
        "/srv/registry",
        ["127.0.0.1:5000", "[::1]:5000"],
        "debug",
    )
    assert not validate


def test_keys_come_from_flags(tmp_path: Path):
    file = tmp_path / "empty.json"
    file.write_text("{}")
    config, validate = parse_serve(
        ["--config", str(file), "--root", "/r", "--listen", ":1", "--listen", "a:2", "--validate"]
    )
    assert (config.root, config.listen, config.log_level) == ("/r", [":1", "a:2"], "info")
    assert validate


def test_a_key_given_twice_is_refused(file: Path):
    with pytest.raises(InvalidParameter, match=r"root: \(from flag: /r, from file: /srv/registry\)"):
        parse_serve(["--config", str(file), "--root", "/r"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"lisen": []}', r"no such configuration: lisen \(did you mean listen\?\)"),
        ('{"zzz": 1}', "no such configuration: zzz; known are listen, root"),
        ('{"listen": "127.0.0.1:5000"}', r"Expected `array`, got `str` - at `\$\.listen`"),
        ('{"listen": []}', "listen must not be empty"),
        ('{"listen": ["5000"]}', "invalid address to listen on '5000': want HOST:PORT"),
        ('{"root": ""}', "root must not be empty"),
        ('{"log-level": "loud"}', "invalid log-level 'loud': use one of debug, info, warn, error"),
        ("[]", "must hold a JSON object"),
        ("{", "invalid JSON"),
        ("", "invalid JSON"),
        ("\xff", "invalid JSON|no such|Expected|must hold"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path: Path, text: str, words: str):
    path = tmp_path / "registry.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidParameter, match=words):
        parse_serve(["--config", str(path)])


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InvalidParameter, match="no such file"):
        parse_serve(["--config", str(tmp_path / "absent.json")])


@pytest.mark.parametrize(
    ("text", "host", "port"), [("127.0.0.1:0", "127.0.0.1", 0), (":5000", "", 5000), ("[::1]:1", "::1", 1)]
)
def test_an_address_is_host_and_port(text: str, host: str, port: int):
    assert parse_address(text) == Address(host, port)
    assert parse_address(str(parse_address(text))) == Address(host, port)


@pytest.mark.parametrize("text", ["", "5000", "host", "host:", "host:x", "host:65536", "::1:5000", "host:٣", "host:-1"])
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(InvalidParameter, match="want HOST:PORT"):
        parse_address(text)


def test_what_is_wrong_is_said_on_stderr(capsys: pytest.CaptureFixture[str], file: Path):
    assert main(["serve", "--config", str(file), "--lisen", "x"]) == 1
    assert "unrecognized arguments: --lisen x\nSee 'wherry registry serve --help'." in capsys.readouterr().err
    assert main(["surve"]) == 1
    assert "no such command: surve" in capsys.readouterr().err


def test_help_is_no_failure(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "serve" in capsys.readouterr().out
    assert main(["serve", "--help"]) == 0
    assert "--listen HOST:PORT" in capsys.readouterr().out


def test_a_configuration_can_be_checked_only(capsys: pytest.CaptureFixture[str], file: Path):
    assert main(["serve", "--config", str(file), "--validate"]) == 0
    assert capsys.readouterr().out == "configuration OK\n"


def test_a_folder_is_one_registrys_at_a_time(tmp_path: Path):
    first = FolderLock(tmp_path / "r")
    with pytest.raises(Conflict, match=r"in use by another registry \(pid \d+\)"):
        FolderLock(tmp_path / "r")
    first.release()
    FolderLock(tmp_path / "r").release()
