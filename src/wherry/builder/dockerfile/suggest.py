"""Near misses: "(did you mean RUN?)"."""

from collections.abc import Iterable

FARTHEST = 2  # letters changed, added, left out or swapped
LONGEST = 64  # characters of a word that is compared


def near(word: str, options: Iterable[str], *, any_case: bool = False) -> str:
    """The option closest to `word`; "" when none is near, or when `word` is one of them.

    With `any_case`, case does not count, and the answer is written as the word is.
    """
    if len(word) > LONGEST:
        return ""
    wanted = word.lower() if any_case else word
    best, distance = "", FARTHEST + 1
    for option in options:
        candidate = option.lower() if any_case else option
        if candidate == wanted:
            return ""
        if abs(len(candidate) - len(wanted)) < distance and (found := _distance(wanted, candidate)) < distance:
            best, distance = option, found
    if distance * 2 > len(word):
        return ""  # too little of the word would be left
    return _cased(best, word) if any_case else best


def hint(word: str, options: Iterable[str], *, any_case: bool = False) -> str:
    """` (did you mean x?)`, or ""."""
    found = near(word, options, any_case=any_case)
    return f" (did you mean {found}?)" if found else ""


def _cased(option: str, like: str) -> str:
    return option.upper() if like.isupper() else option.lower() if like.islower() else option


def _distance(left: str, right: str) -> int:
    """Letters changed, added, left out, or swapped with the next one."""
    before: list[int] = []
    above = list(range(len(right) + 1))
    for line, letter in enumerate(left):
        row = [line + 1]
        for at, other in enumerate(right):
            best = min(above[at + 1] + 1, row[at] + 1, above[at] + (letter != other))
            if line and at and letter == right[at - 1] and other == left[line - 1]:
                best = min(best, before[at - 1] + 1)
            row.append(best)
        before, above = above, row
    return above[-1]
