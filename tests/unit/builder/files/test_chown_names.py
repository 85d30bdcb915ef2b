"""Who an owner is, by the files of the tree."""

import pytest

from wherry.builder.files.owners import look_up
from wherry.builder.graph import Owner
from wherry.errors import InvalidParameter

WORDS = "unable to convert uid/gid chown string to host mapping: can't find "


@pytest.fixture
def tree(target):
    target.fill(
        {
            "etc/passwd": "root:x:0:0::/:/bin/sh\nbad line\nbad:x:y:z\napp:x:1000:1001::/:/bin/sh\n",
            "etc/group": "root:x:0:\napp:x:1001:\nweb:x:2000:app\n",
        }
    )
    return target.fd


@pytest.mark.parametrize(
    ("user", "group", "ids"),
    [
        ("app", "", (1000, 1001)),
        ("app", "web", (1000, 2000)),
        ("app", "55", (1000, 55)),
        ("1234", "", (1234, 1234)),
        ("1000", "", (1000, 1000)),
        ("0", "web", (0, 2000)),
        ("", "web", (0, 2000)),
        ("0", "0", (0, 0)),
    ],
)
def test_names_are_looked_up_and_numbers_taken(tree, user, group, ids):
    assert look_up(Owner(user=user, group=group), tree) == ids


def test_no_owner_stays_none(tree):
    assert look_up(None, tree) is None


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (Owner(user="nobody"), WORDS + "uid for user nobody: no such user: nobody"),
        (Owner(user="bad"), WORDS + "uid for user bad: no such user: bad"),
        (Owner(user="app", group="nogroup"), WORDS + "gid for group nogroup: no such group: nogroup"),
    ],
)
def test_an_unknown_name_is_an_error_and_not_root(tree, owner, words):
    with pytest.raises(InvalidParameter) as caught:
        look_up(owner, tree)
    assert caught.value.message == words


def test_a_name_where_there_is_no_tree_is_told_with_the_remedy():
    with pytest.raises(InvalidParameter, match=r"^invalid user index: -1: app is a name.*use a number$"):
        look_up(Owner(user="app"), None)
    assert look_up(Owner(user="7", group="8"), None) == (7, 8)


@pytest.mark.parametrize("user", ["4294967295", "9" * 5000])
def test_an_id_out_of_range_is_refused(tree, user):
    with pytest.raises(InvalidParameter, match="out of range"):
        look_up(Owner(user=user), tree)


def test_passwd_may_be_a_link_but_only_within_the_tree(target):
    target.fill({"usr/lib/passwd": "app:x:7:8::/:/bin/sh\n", "etc/passwd": "-> ../../../usr/lib/passwd"})
    assert look_up(Owner(user="app"), target.fd) == (7, 8)


def test_a_passwd_that_is_no_file_has_no_users(target):
    target.fill({"etc/passwd/": "", "etc/group": "-> group"})
    with pytest.raises(InvalidParameter, match="no such user"):
        look_up(Owner(user="root"), target.fd)
    with pytest.raises(InvalidParameter, match="too many symbolic links"):
        look_up(Owner(user="0", group="root"), target.fd)
