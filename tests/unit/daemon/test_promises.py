"""What a registry promised to keep, and for how long."""

from wherry.daemon.promises import LIFE, Promises
from wherry.digest import of

ONE, OTHER = of(b"one"), of(b"other")


def test_a_promise_holds_for_its_repository_until_its_time_is_over():
    now = 5.0
    promises = Promises(lambda: now)
    promises.make("a", ONE)
    now += LIFE / 2
    promises.make("a", OTHER)
    promises.make("b", ONE)
    assert promises.holds("a", ONE)
    assert not promises.holds("b", OTHER)
    now += LIFE / 2
    assert not promises.holds("a", ONE)
    assert promises.digests() == {ONE, OTHER}
    now += LIFE
    assert promises.digests() == set()


def test_a_promise_made_again_lasts_longer_and_one_dropped_is_over():
    now = 5.0
    promises = Promises(lambda: now)
    promises.make("a", ONE)
    promises.make("a", OTHER)
    now += LIFE - 1
    promises.make("a", ONE)
    now += 1
    assert promises.digests() == {ONE}
    promises.drop("a", ONE, OTHER)
    assert not promises.holds("a", ONE)
