"""Tag: another name for an image."""

from wherry.images.deps import Deps
from wherry.images.record import Image
from wherry.reference import parse_repository


async def tag(deps: Deps, name: str, *, repository: str, tag: str | None = None) -> Image:
    """Let `repository:tag` (`latest` when left out) name the image `name`, whatever it named before.

    Raises NotFound, and InvalidParameter for a name nobody can choose.
    """
    image = deps.store.get(name)
    reference = parse_repository(repository, tag)
    image = await deps.store.tag(image.id, reference)
    deps.announce("tag", image, actor=image.id, name=reference.familiar)
    return image
