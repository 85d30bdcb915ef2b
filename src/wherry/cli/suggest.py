"""Near misses: what a mistyped name was probably meant to be."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def distance(left: str, right: str) -> int:
    """Edits between two words; a swap of neighbours counts as one."""
    previous: list[int] = []
    current = list(range(len(right) + 1))
    for row, char in enumerate(left, 1):
        before, previous = previous, current
        current = [row]
        for column, other in enumerate(right, 1):
            cost = min(previous[column] + 1, current[column - 1] + 1, previous[column - 1] + (char != other))
            if row > 1 and column > 1 and char == right[column - 2] and left[row - 2] == other:
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
    return current[-1]


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate at most two edits away (one for short words), or that `word` begins; None when none is."""
    limit = 1 if len(word) < 4 else 2
    best: tuple[int, str] | None = None
    for candidate in candidates:
        if len(word) > 2 and candidate.startswith(word):
            return candidate
        score = distance(word.lower(), candidate)
        if score <= limit and (best is None or score < best[0]):
            best = (score, candidate)
    return best[1] if best else None
