"""The graph while it grows.

A graph's vertices never change, but which files of a local directory are needed is known only when every instruction
has been seen. So conversion makes drafts, which point at drafts, and `Drawing.finish` turns all of them into vertices.
Drafts that are the same are one, also across the platforms of a build.
"""

import posixpath
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

from wherry.builder.graph import GitSource, HttpSource, LocalSource, Location, Op, Output, Vertex
from wherry.spec.image import Platform


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """A vertex to be; its output is number 0. The fields are those of `graph.Vertex`."""

    op: Op
    inputs: tuple["Tree", ...] = ()
    name: str
    platform: Platform
    ignore_cache: bool = False
    location: Location | None = None
    slot: str = ""
    said: str = ""
    args: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class LocalDraft:
    """A directory of the client's, of which only `paths` are wanted: each with what is below; "/" is everything."""

    source: LocalSource
    name: str
    paths: set[str] = field(default_factory=set)


Tree = Draft | LocalDraft | Output | None  # None: the empty one


class Drawing:
    def __init__(self) -> None:
        self._drafts: dict[Hashable, Draft] = {}  # in an order in which inputs come before their users
        self._locals: dict[LocalSource, LocalDraft] = {}
        self._vertices: dict[int, Vertex] = {}  # by the id() of the draft

    def add(self, draft: Draft) -> Draft:
        """`draft`, or the one there is already that does the same under the same name."""
        inputs = tuple((id(tree.vertex), tree.index) if isinstance(tree, Output) else id(tree) for tree in draft.inputs)
        key = (draft.op, inputs, draft.name, str(draft.platform), draft.ignore_cache)
        return self._drafts.setdefault(key, draft)

    def local(self, source: LocalSource, name: str) -> LocalDraft:
        """The one draft of a client's directory."""
        return self._locals.setdefault(source, LocalDraft(source=source, name=name))

    def finish(self) -> None:
        """Cut all drafts into vertices."""
        for local in self._locals.values():
            follow = wanted_paths(local.paths)
            self._vertices[id(local)] = Vertex(op=replace(local.source, follow=follow), name=local.name)
        for draft in self._drafts.values():
            self._vertices[id(draft)] = Vertex(
                op=draft.op,
                inputs=tuple(map(self.output, draft.inputs)),
                name=draft.name,
                platform=draft.platform,
                ignore_cache=draft.ignore_cache,
                location=draft.location,
                slot=draft.slot,
                said=draft.said,
                args=draft.args,
            )

    def output(self, tree: Tree) -> Output | None:
        """What a draft has become; only after `finish`."""
        return tree if tree is None or isinstance(tree, Output) else Output(self._vertices[id(tree)])


def is_directory(tree: Tree) -> bool:
    """It is files as a client, git or a web server gives them, and no tree of layers."""
    op = tree.op if isinstance(tree, Draft) else tree.vertex.op if isinstance(tree, Output) else None
    return isinstance(tree, LocalDraft) or isinstance(op, LocalSource | GitSource | HttpSource)


def use(tree: Tree, path: str) -> None:
    """`path` of a tree is taken: when that is a client's directory, it is asked for it."""
    if isinstance(tree, LocalDraft):
        tree.paths.add(posixpath.normpath("/" + path.lstrip("/")))


def wanted_paths(paths: set[str]) -> tuple[str, ...]:
    """What a client is asked for; () is everything. Paths below others go without saying."""
    if "/" in paths:
        return ()
    kept: list[str] = []
    for path in sorted(paths, key=lambda path: path.split("/")):
        if not (kept and path.startswith(kept[-1] + "/")):
            kept.append(path)
    return tuple(path.lstrip("/") for path in kept)
