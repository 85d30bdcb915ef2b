"""`--user` and `--group-add` by Docker's rules."""

import pytest

from wherry.errors import InvalidParameter
from wherry.runtime.users import resolve

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nbroken line\napp:x:1000:1001:App:/home/app:/bin/sh\n"
    "nohome:x:7:8\n1234:x:99:98::/n:\n"
)
GROUP = "root:x:0:\napp:x:1001:\nextra:x:2000:app,other\nmore:x:3000:app\nwheel:x:10:root\n"


def ids(spec, add=()):
    user = resolve(spec, add, passwd=PASSWD, group=GROUP)
    return user.uid, user.gid, user.additional_gids, user.home


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", (0, 0, (0, 10), "/root")),
        ("root", (0, 0, (0, 10), "/root")),
        ("0", (0, 0, (0, 10), "/root")),
        ("app", (1000, 1001, (1001, 2000, 3000), "/home/app")),
        ("1000", (1000, 1001, (1001, 2000, 3000), "/home/app")),
        ("app:wheel", (1000, 10, (10,), "/home/app")),
        ("app:55", (1000, 55, (55,), "/home/app")),
        (":extra", (0, 2000, (2000,), "/root")),
        ("4242", (4242, 0, (0,), "/")),
        ("4242:4343", (4242, 4343, (4343,), "/")),
        ("nohome", (7, 8, (8,), "/")),
        ("1234", (1234, 0, (0,), "/")),
    ],
)
def test_users_are_found_by_name_and_number(spec, expected):
    assert ids(spec) == expected


def test_added_groups_come_after_the_others_and_once():
    assert ids("app", ["wheel", "2000", "77", "wheel"])[2] == (1001, 2000, 3000, 10, 77)


@pytest.mark.parametrize(
    ("spec", "add", "message"),
    [
        ("nobody", (), "unable to find user nobody: no matching entries in passwd file"),
        ("app:nogroup", (), "unable to find group nogroup: no matching entries in group file"),
        ("app", ("nogroup",), "unable to find group nogroup: no matching entries in group file"),
        ("-1", (), "uids and gids must be in range 0-2147483647"),
        ("2147483648", (), "uids and gids must be in range 0-2147483647"),
        ("0:2147483648", (), "uids and gids must be in range 0-2147483647"),
    ],
)
def test_what_is_not_there_is_refused_in_dockers_words(spec, add, message):
    with pytest.raises(InvalidParameter, match=message):
        ids(spec, add)


def test_an_image_without_accounts_has_root_and_numbers():
    user = resolve("1000:2000", (), passwd="", group="")
    assert (user.uid, user.gid, user.home) == (1000, 2000, "/")
    assert resolve("", (), passwd="", group="").uid == 0
