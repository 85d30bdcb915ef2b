from collections.abc import Iterator

import pytest
from netkit import World, private_world


@pytest.fixture
def world() -> Iterator[World]:
    with private_world() as made:
        yield made
