"""Inspect, list and history documents, and the filters of the list."""

import pytest

from imagekit.making import make
from imagekit.world import World
from wherry.errors import InvalidParameter, NotFound
from wherry.filters import NONE, Filters
from wherry.images.views.filters import matches
from wherry.images.views.inspect import history, inspect
from wherry.images.views.listing import list_images
from wherry.images.views.usage import layers_size
from wherry.reference import parse
from wherry.spec.image import OCI_MANIFEST

BASE = {"base": b"0"}
OLD = make([BASE], config={"Labels": {"a": "1"}})
NEW = make([BASE, {"n": b"1"}], config={"Labels": {"a": "2"}, "Env": ["A=1"]}, variant="v2", architecture="amd64")
PARENT = make([BASE, {"p": b"1"}])


@pytest.fixture
async def filled(world: World) -> World:
    await world.put(OLD, "localhost:5000/group/old:1", f"localhost:5000/group/old@{OLD.digest}")
    await world.put(NEW, "new:1", "new:2")
    await world.put(PARENT)
    return world


async def names(world: World, **fields: str) -> set[str]:
    found = await list_images(world.deps, users={}, filters=Filters({key: (value,) for key, value in fields.items()}))
    ids = {OLD.id: "old", NEW.id: "new", PARENT.id: "dangling"}
    return {ids[str(each["Id"])] for each in found}


async def test_an_image_is_described_with_dockers_keys(filled: World):
    document = inspect(filled.deps, "localhost:5000/group/old:1")
    assert set(document) == {
        "Id",
        "RepoTags",
        "RepoDigests",
        "Parent",
        "Comment",
        "Created",
        "Descriptor",
        "DockerVersion",
        "Author",
        "Config",
        "Architecture",
        "Os",
        "Size",
        "GraphDriver",
        "RootFS",
        "Metadata",
    }
    assert document["RepoDigests"] == [f"localhost:5000/group/old@{OLD.digest}"]
    assert document["Created"] == "2024-05-06T07:08:09.123456789Z"
    assert document["RootFS"] == {"Type": "layers", "Layers": OLD.diff_ids}
    assert document["Size"] == 100
    assert inspect(filled.deps, "new:1")["Variant"] == "v2"


async def test_the_config_has_what_api_1_51_shows_even_when_empty(filled: World):
    assert inspect(filled.deps, "new:1")["Config"] == {
        "Cmd": None,
        "Entrypoint": None,
        "Env": ["A=1"],
        "Labels": {"a": "2"},
        "OnBuild": None,
        "User": "",
        "Volumes": None,
        "WorkingDir": "",
    }


async def test_the_list_has_dockers_keys_and_counts_only_when_asked(filled: World):
    (entry,) = await list_images(filled.deps, users={}, filters=Filters({"reference": ("new",)}))
    assert entry == {
        "Containers": 0,
        "Created": 1714979289,
        "Descriptor": {"mediaType": OCI_MANIFEST, "digest": NEW.digest, "size": len(NEW.manifest)},
        "Id": NEW.id,
        "Labels": {"a": "2"},
        "ParentId": "",
        "RepoDigests": [],
        "RepoTags": ["new:1", "new:2"],
        "SharedSize": -1,
        "Size": 200,
    }
    (entry,) = await list_images(
        filled.deps, filters=Filters({"reference": ("new",)}), shared_size=True, users={NEW.id: ["a", "b", "c"]}
    )
    assert (entry["SharedSize"], entry["Containers"]) == (100, 3)


async def test_untagged_parents_of_other_images_are_shown_with_all_only(filled: World):
    await filled.put(make([BASE, {"p": b"1"}, {"q": b"2"}]), "child", parent=PARENT.id)
    shown = [entry["Id"] for entry in await list_images(filled.deps, users={}, filters=NONE)]
    assert PARENT.id not in shown
    assert PARENT.id in [entry["Id"] for entry in await list_images(filled.deps, users={}, all=True, filters=NONE)]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, {"old", "new", "dangling"}),
        ({"dangling": "true"}, {"dangling"}),
        ({"dangling": "false"}, {"old", "new"}),
        ({"label": "a"}, {"old", "new"}),
        ({"label": "a=2"}, {"new"}),
        ({"reference": "new:1"}, {"new"}),
        ({"reference": "*"}, {"new"}),
        ({"reference": "*/*/*"}, {"old"}),
        ({"reference": "localhost:5000/group/o*:?"}, {"old"}),
        ({"reference": "nothing"}, set()),
        ({"until": "1714979290"}, {"old", "new", "dangling"}),
        ({"until": "2024-05-06"}, set()),
    ],
)
async def test_the_list_is_filtered(filled: World, fields, found):
    assert await names(filled, **fields) == found


async def test_a_reference_filter_leaves_out_the_tags_that_do_not_match(filled: World):
    (entry,) = await list_images(filled.deps, users={}, filters=Filters({"reference": ("new:2",)}))
    assert entry["RepoTags"] == ["new:2"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"nonsense": ("1",)}, "invalid filter 'nonsense'"),
        ({"dangling": ("maybe",)}, "invalid filter 'dangling="),
        ({"until": ("soon",)}, "invalid filter 'until="),
    ],
)
async def test_a_bad_filter_is_refused(filled: World, fields, error):
    with pytest.raises(InvalidParameter, match=error):
        await list_images(filled.deps, users={}, filters=Filters(fields))


async def test_before_and_since_need_an_image_that_is_there(filled: World):
    with pytest.raises(NotFound, match="No such image: gone:latest"):
        await list_images(filled.deps, users={}, filters=Filters({"before": ("gone",)}))
    assert await names(filled, since="new:1") == set()
    assert await names(filled, before="new:1") == set()


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("busybox", "busybox:latest", True),
        ("busy*", "busybox:latest", True),
        ("*:latest", "busybox:latest", True),
        ("a/*", "a/b:1", True),
        ("a*", "a/b:1", False),
        ("[ab]*", "busybox:1", True),
        ("busybox:2", "busybox:1", False),
    ],
)
def test_reference_patterns_do_not_cross_slashes(pattern, name, found):
    assert matches(pattern, parse(name)) is found


async def test_history_is_newest_first_with_the_sizes_of_its_layers(filled: World):
    items = history(filled.deps, "new:1")
    assert [item["CreatedBy"] for item in items] == ["step 1", "step 0"]
    assert items[0]["Id"] == NEW.id
    assert items[0]["Tags"] == ["new:1", "new:2"]
    assert (items[1]["Id"], items[1]["Tags"], items[1]["Size"]) == ("<missing>", None, 100)
    assert set(items[0]) == {"Comment", "Created", "CreatedBy", "Id", "Size", "Tags"}


async def test_shared_layers_count_once_in_the_size_of_all(filled: World):
    assert await layers_size(filled.deps) == 300
