"""`update`: from flags to the body."""

from collections.abc import Callable
from typing import Any

import pytest

Wherry = Callable[..., Any]


@pytest.fixture
def body(fake_engine: Any, reply: Any, wherry: Wherry) -> Callable[..., dict[str, Any]]:
    """What `update FLAGS web` sends."""

    def send(*flags: str) -> dict[str, Any]:
        fake_engine.answers["POST /containers/web/update"] = reply(200, {"Warnings": None})
        done = wherry("update", *flags, "web")
        assert (done.code, done.out, done.err) == (0, "web\n", "")
        found: dict[str, Any] = fake_engine.requests[-1].body
        return found

    return send


def test_only_what_was_given_is_sent(body: Callable[..., dict[str, Any]]) -> None:
    assert body("-m", "64m", "--cpus", "1.5", "--pids-limit", "-1") == {
        "Memory": 64 << 20,
        "NanoCpus": 1_500_000_000,
        "PidsLimit": -1,
    }
    assert body("--restart", "on-failure:3") == {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}


def test_ports_come_and_go_in_the_words_of_p(body: Callable[..., dict[str, Any]]) -> None:
    added = ("8080:80", "127.0.0.1:53:53/udp", "9000-9001:90-91")
    assert body(*(word for text in added for word in ("--publish-add", text))) == {
        "PublishAdd": {
            "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
            "53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}],
            "90/tcp": [{"HostIp": "", "HostPort": "9000"}],
            "91/tcp": [{"HostIp": "", "HostPort": "9001"}],
        }
    }
    removed = ("80", "8080:81/udp", "[::1]:5:82", "127.0.0.1::83", "84-85")
    assert body(*(word for text in removed for word in ("--publish-rm", text))) == {
        "PublishRm": ["80/tcp", "8080:81/udp", "[::1]:5:82/tcp", "127.0.0.1::83/tcp", "84/tcp", "85/tcp"]
    }


def test_mounts_and_devices_come_and_go(body: Callable[..., dict[str, Any]]) -> None:
    found = body(
        "--mount-add", "type=tmpfs,dst=/t", "--mount-rm", "/x", "--mount-rm", "/y", "--device-add", "/dev/a:/dev/b:r",
        "--device-add", "/dev/c", "--device-add", "/dev/d:rw", "--device-rm", "/dev/e",
    )  # fmt: skip
    (mount,) = found.pop("MountAdd")
    assert (mount["Type"], mount["Target"]) == ("tmpfs", "/t")
    assert found == {
        "MountRm": ["/x", "/y"],
        "DeviceAdd": [
            {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"},
            {"PathOnHost": "/dev/c", "PathInContainer": "/dev/c", "CgroupPermissions": "rwm"},
            {"PathOnHost": "/dev/d", "PathInContainer": "/dev/d", "CgroupPermissions": "rw"},
        ],
        "DeviceRm": ["/dev/e"],
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--publish-add", "x"], "invalid containerPort: x"),
        (["--publish-rm", "80/foo"], "invalid proto: foo"),
        (["--mount-add", "type=bind"], "target is required"),
        (["--device-add", "/a:/b:zz"], "bad mode specified: zz"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    fake_engine: Any, wherry: Wherry, flags: list[str], words: str
) -> None:
    done = wherry("update", *flags, "web")
    assert done.code != 0
    assert words in done.err
    assert fake_engine.requests == []


def test_nothing_to_do_is_a_mistake(wherry: Wherry) -> None:
    done = wherry("update", "web")
    assert (done.code, done.err) == (1, "you must provide one or more flags when using this command\n")
