"""Of several sources of one instruction, none takes the place of another."""

import pytest

from wherry.errors import InvalidParameter


def test_one_of_several_files_needs_a_directory_to_come_into(place):
    place.source.fill({"a": "a"})
    place.target.fill({"file": "f", "there/": "", "link": "-> there"})
    for target in ("/new", "/file", "/there/new"):
        with pytest.raises(InvalidParameter, match="the destination must be a directory and end with a /"):
            place.copy("a", target, several=True)
    assert place.target.see() == {"file": "f", "there/": "", "link": "-> there"}


def test_a_directory_that_is_there_or_meant_will_do(place):
    place.source.fill({"a": "a"})
    place.target.fill({"there/": "", "link": "-> there"})
    for target in ("/there", "/link", "/new/", "/"):
        place.copy("a", target, several=True)
    assert place.target.see() == {"there/a": "a", "link": "-> there", "new/a": "a", "a": "a"}


def test_the_first_of_several_directories_makes_the_one_for_all(place):
    place.source.fill({"one/a": "a", "two/b": "b", "c": "c"})
    for source in ("one", "two", "c"):
        place.copy(source, "/all", several=True)
    assert place.target.see() == {"all/a": "a", "all/b": "b", "all/c": "c"}
