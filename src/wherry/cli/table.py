"""Columns as docker's tabwriter draws them: at least 10 wide, 3 spaces apart, the last one not padded.

A cell is what ends in a tab; a column is a run of adjacent lines that have that cell. Text after the last tab of a
line is not part of a column.
"""

from __future__ import annotations

MIN_WIDTH, PADDING = 10, 3


def display_width(text: str) -> int:
    """One per character, as Go's tabwriter counts."""
    return len(text)


def align(lines: list[str], *, min_width: int = MIN_WIDTH, padding: int = PADDING) -> str:
    """Join `lines` of tab-terminated cells into aligned text, each line ended by a newline."""
    rows = [line.split("\t") for line in lines]
    widths: list[list[int]] = [[0] * (len(row) - 1) for row in rows]
    _measure(rows, widths, 0, len(rows), 0, min_width, padding)
    out: list[str] = []
    for row, columns in zip(rows, widths, strict=True):
        for cell, width in zip(row, columns, strict=False):
            out.append(cell + " " * (width - display_width(cell)))
        out.append(row[-1] + "\n")
    return "".join(out)


def _measure(
    rows: list[list[str]], widths: list[list[int]], start: int, end: int, column: int, minimum: int, padding: int
) -> None:
    """Fill `widths` for `column` and those right of it, over the block of lines start..end."""
    at = start
    while at < end:
        if column >= len(rows[at]) - 1:
            at += 1
            continue
        stop = at
        width, empty = minimum, True
        while stop < end and column < len(rows[stop]) - 1:
            cell = display_width(rows[stop][column])
            width = max(width, cell + padding)
            empty = empty and cell == 0
            stop += 1
        for line in range(at, stop):
            widths[line][column] = width
        _measure(rows, widths, at, stop, column + 1, minimum, padding)
        at = stop
