"""Flags and daemon.json."""

import pytest

from wherry.daemon.config import AddressPool, RuntimeEntry, find_runtimes, parse_command_line, parse_size
from wherry.errors import InvalidParameter


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> list[str]:
        path = tmp_path / "daemon.json"
        path.write_text(text)
        return ["--config-file", str(path)]

    return write


def test_flags_become_configuration(file):
    config, validate = parse_command_line(
        [
            *file(""),
            *("-H", "unix:///a", "-H", "tcp://127.0.0.1:1", "-D", "--icc=false", "--add-runtime", "mine=/bin/true"),
            *("--default-address-pool", "base=10.9.0.0/16,size=24", "--log-opt", "max-size=1m", "--live-restore"),
            "--validate",
        ]
    )
    assert validate
    assert config.hosts == ["unix:///a", "tcp://127.0.0.1:1"]
    assert (config.debug, config.icc) == (True, False)
    assert config.runtimes == {"mine": RuntimeEntry("/bin/true")}
    assert config.default_address_pools == [AddressPool("10.9.0.0/16", 24)]
    assert config.log_opts == {"max-size": "1m"}


def test_the_file_and_the_flags_complete_each_other(file):
    config, _ = parse_command_line([*file('{"mtu": 1400, "default-shm-size": "128m"}'), "--bip", "172.31.0.1/24"])
    assert (config.mtu, config.bip, config.default_shm_size) == (1400, "172.31.0.1/24", 128 << 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"debgu": true}', r"don't match any configuration option: debgu \(did you mean debug\?\)"),
        ('{"debug": "yes"}', r"Expected `bool`, got `str` - at `\$.debug`"),
        ('{"mtu": 3}', "invalid mtu 3"),
        ("[]", "must hold a JSON object"),
        ("{", "invalid JSON"),
        ('{"hosts": ["unix:///b"]}', "specified both as a flag and in the configuration file: hosts"),
        ('{"bip": "10.0.0.0/24"}', "invalid bip"),
        ('{"bip": "10.0.0.1/24", "bridge": "br0"}', "mutually exclusive"),
        ('{"data-root": "here"}', "data-root must be an absolute path: 'here'"),
        ('{"storage-driver": "zfs"}', "unknown storage-driver 'zfs'"),
        ('{"default-runtime": "kata"}', "register it with --add-runtime"),
        ('{"default-address-pools": [{"base": "10.0.0.0/8", "size": 4}]}', "want 8 to 30"),
        ('{"labels": ["x"]}', "invalid label 'x'"),
        ('{"dns": ["dns.example"]}', "invalid dns"),
        ('{"host-dns": "192.0.2.1:53"}', "invalid host-dns '192.0.2.1:53'"),
        ('{"tlsverify": true}', "TLS needs tlscert and tlskey"),
    ],
)
def test_a_wrong_file_is_refused_naming_key_and_remedy(file, text, words):
    with pytest.raises(InvalidParameter, match=words):
        parse_command_line([*file(text), "-H", "unix:///a"])


@pytest.mark.parametrize("argv", [["--nope"], ["--mtu", "x"], ["word"], ["--icc", "maybe"], ["--add-runtime", "x"]])
def test_a_wrong_flag_is_refused(argv):
    with pytest.raises(InvalidParameter, match="See 'wherry daemon --help'"):
        parse_command_line(argv)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(InvalidParameter, match="no such file"):
        parse_command_line(["--config-file", str(tmp_path / "none")])


def test_a_runtime_that_is_not_there_is_refused(file):
    config, _ = parse_command_line([*file(""), "--add-runtime", "mine=/nowhere/rt"])
    with pytest.raises(InvalidParameter, match="program /nowhere/rt does not exist"):
        find_runtimes(config)


def test_sizes_carry_units():
    assert [parse_size(text) for text in ("7", "1k", "64M", "2GiB")] == [7, 1024, 64 << 20, 2 << 30]


def test_own_roots_give_an_instance_tag_and_the_default_root_none(tmp_path):
    own, _ = parse_command_line(["--config-file", "/dev/null", "--data-root", str(tmp_path)])
    default, _ = parse_command_line(["--config-file", "/dev/null"])
    assert len(own.own_instance) == 8
    assert default.own_instance == ""
