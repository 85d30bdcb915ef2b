"""Tag: another name for an image."""

from wherry.images.deps import Deps
from wherry.images.record import Image
from wherry.reference import parse_repository


async def tag(deps: Deps, name: str, *, repository: str, tag: str | None = None) -> Image:
    """Let `repository:tag` (`latest` when left out) stand for what `name` stands for, with all its platforms.

    Raises NotFound, and InvalidParameter for a name nobody can choose.
    """
    deps.store.get(name)  # a missing image is said before a bad name
    reference = parse_repository(repository, tag)
    image = await deps.store.tag(name, reference)
    deps.announce("tag", image, actor=image.id, name=reference.familiar)
    return image
