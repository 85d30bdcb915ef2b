"""Tag: another name for an image."""

from wherry.errors import InvalidParameter
from wherry.images.deps import Deps
from wherry.images.garbage import collect
from wherry.images.record import Image
from wherry.reference import parse_repository


async def tag(deps: Deps, name: str, *, repository: str, tag: str | None = None) -> Image:
    """Let `repository:tag` (`latest` when left out) stand for what `name` stands for, with all its platforms.

    The name is taken from what had it. Raises InvalidParameter for a name nobody can choose, and NotFound.
    """
    reference = parse_repository(repository, tag)
    if reference.familiar_name == "sha256":
        raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
    image = await deps.store.tag(name, reference)
    deps.announce("tag", image, actor=image.id, name=reference.familiar)
    await collect(deps, digests=(), chains=())  # the index the name had, when nothing else names it
    return image
