"""The functions of templates, and Go's way to print values and to tell true from false."""

from __future__ import annotations

from wherry.cli.template_parse import TemplateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Objects the engine answers that are maps in Docker's types; all others are structs.
MAP_FIELDS = frozenset(
    "Annotations Containers Data DriverOpts ExposedPorts GenericResources Labels Networks Options Ports"
    " PortBindings Runtimes StorageOpt Sysctls Tmpfs Volumes IndexConfigs Attributes AuxiliaryAddresses"
    " Details GwPriority Metadata".split()
)

STRING_MAPS = frozenset(
    "Annotations Attributes AuxiliaryAddresses Data Details DriverOpts Labels Options StorageOpt Sysctls Tmpfs".split()
)

# Fields of Docker's types that are left out of JSON when empty, and what a template sees instead.
OPTIONAL: dict[str, Any] = {
    "Health": None,
    "Healthcheck": None,
    "StopSignal": "",
    "StopTimeout": None,
    "OnBuild": None,
    "Shell": None,
    "ExposedPorts": None,
    "Volumes": None,
    "Entrypoint": None,
    "Cmd": None,
    "Mounts": None,
    "Tmpfs": None,
    "Sysctls": None,
    "Annotations": None,
    "StorageOpt": None,
    "Labels": None,
    "SizeRw": None,
    "SizeRootFs": None,
    "NetworkDisabled": False,
    "MacAddress": "",
    "Init": None,
    "ArgsEscaped": False,
    "Comment": "",
    "Author": "",
    "Container": "",
    "Variant": "",
    "OsVersion": "",
    "Runtime": "",
    "Status": "",
    "UsageData": None,
    "Platform": None,
    "Warnings": None,
    "Parent": "",
    "VirtualSize": 0,
}


# Lists the engine may answer as null, which still print as lists.
LIST_FIELDS = frozenset(
    "Args Binds CapAdd CapDrop Cmd Devices DeviceCgroupRules DeviceRequests Dns DnsOptions DnsSearch Entrypoint Env"
    " ExtraHosts GroupAdd Links MaskedPaths Mounts OnBuild ReadonlyPaths RepoDigests RepoTags SecurityOpt Shell"
    " Test Ulimits VolumesFrom Warnings Aliases Peers".split()
)


class GoMap(dict[str, "Any"]):
    """A dict that is a map in Go: keys print, and empty ones are false."""

    of_strings = False


class StringMap(GoMap):
    of_strings = True


class NilMap(StringMap):
    """A map that was null or left out: empty, and null again in JSON."""


class NilList(list["Any"]):
    """A list that was null or left out."""


def typed(key: str, value: Any) -> Any:
    """`value` as the Go type of the field `key` would have it."""
    if value is None:
        if key in MAP_FIELDS:
            return NilMap()
        return NilList() if key in LIST_FIELDS or "/" in key else None  # 80/tcp: a port that is not published
    if isinstance(value, dict) and not isinstance(value, GoMap):
        if key in STRING_MAPS or (key == "Config" and all(isinstance(item, str) for item in value.values())):
            return StringMap(value)  # a log driver's Config is a map, a container's is not
        if key in MAP_FIELDS:
            return GoMap(value)
    return value


def truth(value: Any) -> bool:
    if isinstance(value, dict) and not isinstance(value, GoMap):
        return True
    return bool(value)


def go_string(value: Any) -> str:
    """As Go's fmt prints with %v."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, list | tuple):
        return "[" + " ".join(go_string(item) for item in value) + "]"
    if isinstance(value, dict):
        if isinstance(value, GoMap):
            body = " ".join(f"{key}:{go_string(value[key])}" for key in sorted(value))
            return f"map[{body}]"
        return "{" + " ".join(go_string(typed(key, item)) for key, item in value.items()) + "}"
    return str(value)


def go_float(value: float) -> str:
    """%v of a float64: the shortest digits, with an exponent below 0.0001 and from a million on."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, power = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    exponent = len(whole) + int(power or 0) - 1 if whole != "0" else len(digits) - len(fraction) + int(power or 0) - 1
    digits = digits.rstrip("0")
    if -4 <= exponent < 6:
        if exponent < 0:
            return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
        left = digits[: exponent + 1].ljust(exponent + 1, "0")
        return sign + left + ("." + digits[exponent + 1 :] if len(digits) > exponent + 1 else "")
    tail = "." + digits[1:] if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def to_json(value: Any) -> str:
    from wherry.cli.listing import Row
    from wherry.client.jsontext import dumps

    if isinstance(value, NilMap | NilList):
        return "null"
    return dumps(value.as_json(), html=True) if isinstance(value, Row) else dumps(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateError("wrong type for value; expected string; got " + type_of(value))
    return value


def type_of(value: Any) -> str:
    names: dict[type, str] = {bool: "bool", int: "int", float: "float64", str: "string", list: "[]interface {}"}
    return names.get(type(value), "map[string]interface {}" if isinstance(value, dict) else "interface {}")


def join(items: Any, separator: str) -> str:
    if items is None:
        return ""
    if not isinstance(items, list):
        raise TemplateError("wrong type for value; expected []string; got " + type_of(items))
    return separator.join(_text(item) for item in items)


def split(text: str, separator: str) -> list[str]:
    return _text(text).split(separator) if separator else list(text)


def title(text: str) -> str:
    out, start = [], True
    for char in _text(text):
        out.append(char.upper() if start else char)
        start = not (char.isalnum() or char in "_'")
    return "".join(out)


def lower(text: str) -> str:
    return _text(text).lower()


def upper(text: str) -> str:
    return _text(text).upper()


def pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if _text(text) else text


def truncate(text: str, length: int) -> str:
    return _text(text)[:length]


def length(value: Any) -> int:
    if value is None:
        raise TemplateError("len of nil pointer")
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list | dict):
        return len(value)
    raise TemplateError(f"len of type {type_of(value)}")


def index(value: Any, *keys: Any) -> Any:
    """Step into lists by number and maps by key; a map's missing key is the zero value."""
    for key in keys:
        if value is None:
            raise TemplateError("index of untyped nil")
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise TemplateError(f"value has type {type_of(key)}; should be string")
            if key not in value:
                value = "" if isinstance(value, GoMap) and value.of_strings else None
                continue
            value = typed(key, value[key])
        elif isinstance(value, list | str):
            if isinstance(key, bool) or not isinstance(key, int):
                raise TemplateError(f"cannot index slice/array with type {type_of(key)}")
            if not 0 <= key < len(value):
                raise TemplateError(f"index out of range: {key}")
            value = value.encode()[key] if isinstance(value, str) else value[key]
        else:
            raise TemplateError(f"can't index item of type {type_of(value)}")
    return value


def slice_(value: Any, *bounds: int) -> Any:
    if not isinstance(value, str | list):
        raise TemplateError(f"can't slice item of type {type_of(value)}")
    start = bounds[0] if bounds else 0
    stop = bounds[1] if len(bounds) > 1 else len(value)
    if not 0 <= start <= stop <= len(value):
        raise TemplateError(f"index out of range: {stop if stop > len(value) else start}")
    return value[start:stop]


def _family(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    if isinstance(value, float):
        return "float"
    return "string" if isinstance(value, str) else "other"


def _comparable(left: Any, right: Any) -> None:
    # a JSON number without fraction is an int to us, and may be a float to Go: let them mix
    numbers = ("int", "float")
    if left is None or right is None or _family(left) == _family(right):
        return
    if not (_family(left) in numbers and _family(right) in numbers):
        raise TemplateError("incompatible types for comparison")


def equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("missing argument for comparison")
    for other in others:
        _comparable(first, other)
        if first == other:
            return True
    return False


def not_equal(first: Any, second: Any) -> bool:
    return not equal(first, second)


def less(first: Any, second: Any) -> bool:
    _comparable(first, second)
    if first is None or second is None or _family(first) in ("bool", "other"):
        raise TemplateError("invalid type for comparison")
    return bool(first < second)


def less_equal(first: Any, second: Any) -> bool:
    return less(first, second) or equal(first, second)


def printf(form: str, *values: Any) -> str:
    """Go's Sprintf for %v %s %d %q %x %X %o %b %c %t %f %e %g %T %%, with flags, width and precision."""
    out: list[str] = []
    at, used = 0, 0
    while at < len(form):
        char = form[at]
        at += 1
        if char != "%":
            out.append(char)
            continue
        start = at
        while at < len(form) and form[at] in "+-# 0":
            at += 1
        flags = form[start:at]
        start = at
        while at < len(form) and (form[at].isdigit() or form[at] == "."):
            at += 1
        width, dot, precision = form[start:at].partition(".")
        if at >= len(form):
            out.append("%!(NOVERB)")
            break
        verb = form[at]
        at += 1
        if verb == "%":
            out.append("%")
            continue
        if used >= len(values):
            out.append(f"%!{verb}(MISSING)")
            continue
        text = _verb(verb, values[used], flags, int(precision or 0) if dot else None)
        used += 1
        size = int(width or 0)
        if "-" in flags:
            text = text.ljust(size)
        elif "0" in flags and verb in "dfegxXob":
            sign = text[:1] if text[:1] in ("+", "-") else ""
            text = sign + text[len(sign) :].rjust(size - len(sign), "0")
        else:
            text = text.rjust(size)
        out.append(text)
    if used < len(values):
        extra = ", ".join(f"{type_of(value)}={go_string(value)}" for value in values[used:])
        out.append(f"%!(EXTRA {extra})")
    return "".join(out)


def _verb(verb: str, value: Any, flags: str, precision: int | None) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if verb in "vs":
        if verb == "s" and (number or isinstance(value, bool)):
            return f"%!s({type_of(value)}={go_string(value)})"
        text = go_string(value)
        return text if precision is None else text[:precision]
    if verb == "d" and number:
        return f"{int(value):{'+' if '+' in flags else ''}d}"
    if verb == "q":
        from wherry.client.jsontext import quote

        return quote(go_string(value)) if isinstance(value, str) else f"%!q({type_of(value)}={go_string(value)})"
    if verb == "t" and isinstance(value, bool):
        return go_string(value)
    if verb in "xX" and isinstance(value, str):
        return value.encode().hex() if verb == "x" else value.encode().hex().upper()
    if verb in "xXob" and number:
        return f"{int(value):{'#' if '#' in flags else ''}{verb}}"
    if verb == "c" and number:
        return chr(int(value))
    if verb in "feEgG" and number:
        digits = "" if precision is None and verb in "gG" else f".{6 if precision is None else precision}"
        return f"{float(value):{'+' if '+' in flags else ''}{digits}{verb}}"
    if verb == "T":
        return type_of(value)
    return f"%!{verb}({type_of(value)}={go_string(value)})"


def print_(*values: Any) -> str:
    """Spaces go between operands when neither is a string."""
    out = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            out += " "
        out += go_string(value)
    return out


def println(*values: Any) -> str:
    return " ".join(go_string(value) for value in values) + "\n"


def html(*values: Any) -> str:
    text = print_(*values)
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;")):
        text = text.replace(char, name)
    return text


def urlquery(*values: Any) -> str:
    from wherry.client.engine import quote

    return quote(print_(*values), safe=b" ").replace(" ", "+")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "join": join,
    "split": split,
    "title": title,
    "lower": lower,
    "upper": upper,
    "pad": pad,
    "truncate": truncate,
    "len": length,
    "index": index,
    "slice": slice_,
    "not": lambda value: not truth(value),
    "eq": equal,
    "ne": not_equal,
    "lt": less,
    "le": less_equal,
    "gt": lambda first, second: not less_equal(first, second),
    "ge": lambda first, second: not less(first, second),
    "print": print_,
    "printf": printf,
    "println": println,
    "html": html,
    "urlquery": urlquery,
}
