"""`image ls --tree`: every image with the platforms it has, drawn as docker draws it.

The names of an image are above each other, the longest first; beside the last of them is what it takes up. Columns
that do not fit are left out from the right. Colours are for terminals only.
"""

from __future__ import annotations

import os

from wherry.cli.notes import mark
from wherry.cli.platforms import shown_platform
from wherry.cli.units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

DEFAULT_WIDTH, LEAST_WIDTH = 80, 20
SPACING, LEAST_NAME = 3, 12
IN_USE = "U"
UNTAGGED = "<untagged>"
COLUMNS = (("ID", 12, "<"), ("DISK USAGE", 10, ">"), ("CONTENT SIZE", 12, ">"), ("EXTRA", 5, "<"))
HEADING, NORMAL, NAME = "\x1b[39m\x1b[1m", "\x1b[39m", "\x1b[34m\x1b[1m"
FAINT = "\x1b[39m\x1b[2m"
CHIP = "\x1b[38;5;0m\x1b[48;5;14m U \x1b[0m"
PLAIN = "\x1b[0m"


class Line:
    """One image or one platform: its label and its cells."""

    __slots__ = ("cells", "in_use", "label", "style")

    def __init__(self, label: str, identifier: str, usage: int, content: int, *, in_use: bool, style: str) -> None:
        self.label = label
        self.cells = (identifier.rpartition(":")[2][:12], human_size(usage, 3), human_size(content, 3))
        self.in_use = in_use
        self.style = style


class Tree:
    """An image: `above` are its names but the last, which is the label of `top`."""

    __slots__ = ("above", "children", "top")

    def __init__(self, image: dict[str, Any]) -> None:
        manifests = [entry for entry in image.get("Manifests") or [] if entry.get("Kind") == "image"]
        names = sorted(image.get("RepoTags") or [], key=lambda name: -len(name.encode()))
        self.above = names[:-1]
        self.children: list[Line] = []
        content, used = 0, bool((image.get("Containers") or 0) > 0)
        for number, entry in enumerate(manifests):
            data, size = entry.get("ImageData") or {}, entry.get("Size") or {}
            content += size.get("Content") or 0
            branch = "└─ " if number == len(manifests) - 1 else "├─ "
            child = Line(
                branch + shown_platform(data.get("Platform") or {}),
                str(entry["ID"]),
                size.get("Total") or 0,
                size.get("Content") or 0,
                in_use=bool(data.get("Containers")),
                style=NORMAL if entry.get("Available") else FAINT,
            )
            used = used or child.in_use
            self.children.append(child)
        self.top = Line(
            names[-1] if names else UNTAGGED,
            str(image["Id"]),
            image.get("Size") or 0,
            content,
            in_use=used,
            style=NORMAL,
        )

    def labels(self) -> Iterable[str]:
        yield from self.above
        yield self.top.label
        for child in self.children:
            yield child.label


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


class Drawing:
    """Trees for an output of one width, with colours or without."""

    def __init__(self, trees: Sequence[Tree], *, width: int, coloured: bool) -> None:
        self.trees = trees
        self.width = width
        self.coloured = coloured
        self.columns = list(COLUMNS)
        left = width
        for number, (_, wide, _) in enumerate(COLUMNS):
            if left - wide - SPACING < LEAST_NAME:
                self.columns = self.columns[:number]
                break
            left -= wide + SPACING
        widest = max((len(label.encode()) for tree in trees for label in tree.labels()), default=0)
        self.name_width = min(left, max(widest, len("IMAGE")))

    def painted(self, style: str, text: str) -> str:
        return f"{style}{text}{PLAIN}" if self.coloured else text

    def legend(self, note_mark: str) -> str:
        chip = CHIP if self.coloured else IN_USE
        visible = 21 if self.coloured else 19
        return " " * max(self.width - visible, 0) + f"{note_mark} {chip} In Use \n\n"

    def heading(self) -> str:
        parts = [self.painted(HEADING, "IMAGE") + " " * (self.name_width - len("IMAGE"))]
        for title, wide, side in self.columns:
            padding = " " * (wide - len(title))
            parts.append(padding * (side == ">") + self.painted(HEADING, title) + padding * (side == "<"))
        return (" " * SPACING).join(parts) + "\n"

    def row(self, line: Line, style: str) -> str:
        label = cut(line.label, self.name_width)
        parts = [self.painted(style, label) + " " * (self.name_width - len(label))]
        for (_, wide, side), cell in zip(self.columns, (*line.cells, ""), strict=False):
            if cell:
                padding = " " * (wide - len(cell))
                parts.append(padding * (side == ">") + self.painted(line.style, cell) + padding * (side == "<"))
            elif line.in_use:
                parts.append(CHIP + "  " if self.coloured else IN_USE.ljust(wide))
            else:
                parts.append(" " * wide)
        return (" " * SPACING).join(parts) + "\n"

    def text(self) -> str:
        out = [self.heading()]
        for tree in self.trees:
            out.extend(self.painted(NAME, cut(name, self.width)) + "\n" for name in tree.above)
            out.append(self.row(tree.top, FAINT if tree.top.label == UNTAGGED else NAME))
            out.extend(self.row(child, child.style) for child in tree.children)
            out.append("\n")
        return "".join(out)


def draw(images: Sequence[dict[str, Any]], *, untagged: bool, fd: int) -> str:
    """The newest first; those with neither tag nor digest only when they are asked for."""
    try:
        width = max(os.get_terminal_size(fd).columns or DEFAULT_WIDTH, LEAST_WIDTH)
    except OSError:
        width = DEFAULT_WIDTH
    shown = [image for image in images if untagged or image.get("RepoTags") or image.get("RepoDigests")]
    shown.sort(key=lambda image: -(image.get("Created") or 0))
    drawing = Drawing([Tree(image) for image in shown], width=width, coloured=os.isatty(fd))
    return drawing.legend(mark(fd)) + drawing.text()
