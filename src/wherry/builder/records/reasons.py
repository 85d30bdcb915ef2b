"""Why a step ran: what it was made from the last time at this place, against what it is made from now. Pure.

The solver keeps for every place of a project (`Vertex.slot`) the ingredients of its last step:

    command            the instruction, variables replaced
    base               digest of the image it begins from
    parent[ <name>]    identity of what the step before it resulted in ("parent step 2"), or number of the input
    ARG <name>         value of a build argument it sees
    ENV <name>         value of a variable
    file <path>        checksum of a file it takes
    mount <target>     identity of what is mounted there
    no-cache           present when it was to run anyway

Any other word is an ingredient of that name: user, working directory, network, shell.
"""

from collections.abc import Mapping, Sequence

NAMED = 5  # files of a kind that are named; the others are counted
MAX_VALUE = 40  # characters of a value that is shown
SHORT_DIGEST = len("sha256:") + 12

FIRST = "first build of this step"
GONE = "its result is not in the cache any more"
UNCACHED = "--no-cache"
BEFORE = "the step before it changed"

Ingredients = Mapping[str, str]


def reasons(before: Ingredients | None, now: Ingredients) -> list[str]:
    """Sentences, what explains most first; never none. `before` is None when this place was never built."""
    if "no-cache" in now:
        return [UNCACHED]
    if before is None:
        return [FIRST]
    found = [
        *_base(before, now),
        *_command(before, now),
        *_values("ARG", before, now),
        *_values("ENV", before, now),
        *_files(before, now),
        *_mounts(before, now),
        *_others(before, now),
        *_parents(before, now),
    ]
    return found or [GONE]


def _base(before: Ingredients, now: Ingredients) -> list[str]:
    old, new = before.get("base"), now.get("base")
    if old == new:
        return []
    if old is None or new is None:
        return ["it begins from another base"]
    return [f"base image digest moved: {_short(old)}→{_short(new)}"]


def _command(before: Ingredients, now: Ingredients) -> list[str]:
    return ["the command changed"] if before.get("command") != now.get("command") else []


def _values(word: str, before: Ingredients, now: Ingredients) -> list[str]:
    """Build arguments, or variables."""
    found = []
    for key in _changed(f"{word} ", before, now):
        old, new = before.get(key), now.get(key)
        if old is None:
            found.append(f"{printable(key)} was added")
        elif new is None:
            found.append(f"{printable(key)} was removed")
        else:
            found.append(f"{printable(key)} {_value(old)}→{_value(new)}")
    return found


def _files(before: Ingredients, now: Ingredients) -> list[str]:
    keys = _changed("file ", before, now)
    changed = [key for key in keys if key in before and key in now]
    added = [key for key in keys if key not in before]
    removed = [key for key in keys if key not in now]
    return [
        *_counted(changed, one="changed", many="changed"),
        *_counted(added, one="was added", many="were added"),
        *_counted(removed, one="was removed", many="were removed"),
    ]


def _counted(keys: Sequence[str], *, one: str, many: str) -> list[str]:
    names = [printable(key.removeprefix("file ")) for key in keys]
    if not names:
        return []
    if len(names) == 1:
        return [f"`{names[0]}` {one}"]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"{len(names)} files {many}: {', '.join(names[:NAMED])}{more}"]


def _mounts(before: Ingredients, now: Ingredients) -> list[str]:
    found = []
    for key in _changed("mount ", before, now):
        said = "was added" if key not in before else "was removed" if key not in now else "changed"
        found.append(f"{printable(key)} {said}")
    return found


def _parents(before: Ingredients, now: Ingredients) -> list[str]:
    """The steps it stands on; that one has another name is no reason when it resulted in the same."""
    known = {value for key, value in before.items() if _is_parent(key)}
    found = []
    for key, value in now.items():
        if _is_parent(key) and value not in known:
            name = key.removeprefix("parent").strip()
            found.append(f"{printable(name)} before it changed" if name and not name.isdigit() else BEFORE)
    return list(dict.fromkeys(found))


def _others(before: Ingredients, now: Ingredients) -> list[str]:
    found = []
    for key in _changed("", before, now):
        if key == "shell" and before.get("command") != now.get("command"):
            continue  # of a command in exec form it is a part
        if key in ("base", "command") or key.startswith(("ARG ", "ENV ", "file ", "mount ")) or _is_parent(key):
            continue
        old, new = before.get(key), now.get(key)
        if old and new:
            found.append(f"{printable(key)} {_value(old)}→{_value(new)}")
        else:
            found.append(f"{printable(key)} {'was added' if new else 'was removed'}")
    return found


def _is_parent(key: str) -> bool:
    return key == "parent" or key.startswith("parent ")


def _changed(beginning: str, before: Ingredients, now: Ingredients) -> list[str]:
    keys = sorted(key for key in before.keys() | now.keys() if key.startswith(beginning))
    return [key for key in keys if before.get(key) != now.get(key)]


def _short(digest: str) -> str:
    shown = printable(digest)
    return f"{shown[:SHORT_DIGEST]}…" if len(shown) > SHORT_DIGEST else shown


def _value(text: str) -> str:
    shown = printable(text)
    if len(shown) > MAX_VALUE:
        return f"{shown[:MAX_VALUE]}…"
    return shown or '""'


def printable(text: str) -> str:
    """For a terminal: what would move its cursor is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
