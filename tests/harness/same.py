"""The same command line by `docker` and by `wherry`: same output, same errors, same exit code.

What may differ is taken out first: the program's name, identifiers made by the call, times, and colours, which docker
gives to some headings even where there is no terminal.
"""

import difflib
import re

from .engine import Cli, Engine, Result

IDENTIFIER = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b")
AGE = re.compile(r"(Less than a second|About an? \w+|\d+ (seconds?|minutes?|hours?))( ago)?")
ENDPOINT = re.compile(r"endpoint \w+")
PADDING = re.compile(r" {2,}")
COUNTED = re.compile(r'"Containers":"\d+"(?=,"CreatedAt")')  # of an image, since API 1.51; docker 28 speaks 1.50
STAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*( [+-]\d{4} \w+|Z|[+-]\d\d:\d\d)?")
UNORDERED = ("image", "images", "pull", "push")  # images made at the same moment; layers on their ways
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def comparable(result: Result, *, changing: bool) -> tuple[int, str, str]:
    """`changing` output names what the call has made, or tells how old something is."""

    def plain(text: str) -> str:
        text = text.replace("wherry", "docker").replace("Wherry", "Docker").replace("SRun ", "Run ")
        text = text.replace("but the Docker daemon API", "but the daemon API")
        text = COUNTED.sub('"Containers":"N/A"', text)
        text = COLOUR.sub("", text)
        if changing:
            for pattern, word in ((STAMP, "WHEN"), (IDENTIFIER, "ID"), (AGE, "AGE"), (ENDPOINT, "ENDPOINT")):
                text = pattern.sub(word, text)
        return PADDING.sub("  ", text) if changing else text

    return result.code, plain(result.out), plain(result.err)


def both(engine: Engine, *arguments: str, changing: bool = False, input: str | None = None) -> None:
    """Run by both, and compare."""
    compare(engine.docker, engine.wherry, *arguments, changing=changing, input=input)


def compare(docker: Cli, wherry: Cli, *arguments: str, changing: bool = False, input: str | None = None) -> None:
    """Like `both`, by these two."""
    told = []
    for cli in (docker, wherry):
        code, out, err = comparable(cli(*arguments, check=False, input=input), changing=changing)
        lines = sorted(out.splitlines()) if arguments[0] in UNORDERED else out.splitlines()
        told.append([*lines, *(f"! {line}" for line in err.splitlines()), f"exit code {code}"])
    if told[0] != told[1]:
        shown = "\n".join(difflib.unified_diff(*told, "docker", "wherry", lineterm=""))
        raise AssertionError(f"{' '.join(arguments)}\n{shown}")
