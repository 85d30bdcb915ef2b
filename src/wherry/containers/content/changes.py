"""diff: which files a container has added, changed and deleted since it was made."""

from wherry.aio import settle
from wherry.containers.deps import Deps
from wherry.containers.views.shapes import Document
from wherry.storage import diff


async def changes(deps: Deps, name: str) -> list[Document] | None:
    """Docker's list of `{"Path", "Kind"}`, in order of the paths; None when there is nothing. Raises NotFound."""
    container = deps.store.resolve(name)
    found = await settle(diff.changes, deps.snapshots, container.id)
    return [{"Path": path, "Kind": int(kind)} for kind, path in found] or None
