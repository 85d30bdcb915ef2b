"""`os[/arch[/variant]]` as typed, in the forms the API wants it; with the words docker refuses it with."""

from __future__ import annotations

import os

from wherry.client.jsontext import dumps

FORMATTED = 'Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'  # ends the help of a flag

_WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_VERSION = _WORD | {"."}
SYSTEMS = frozenset(
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows "
    "zos".split()
)
ARCHITECTURES = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le mips64p32 "
    "mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm".split()
)
_ALIASES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_VARIANTS = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}


class InvalidPlatform(ValueError):
    """Not a platform; the message is docker's."""


def _normalize(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    if architecture in _ALIASES:
        architecture, implied = _ALIASES[architecture]
        variant = implied or variant
    return architecture, _VARIANTS.get((architecture, variant), variant)


def parse_platform(text: str) -> dict[str, str]:
    """The OCI document of a platform; InvalidPlatform for what is none."""
    system, *rest = text.split("/")
    name, parenthesis, version = system.partition("(")
    if not name or not set(name) <= _WORD or (parenthesis and not _is_version(version)):
        raise InvalidPlatform(
            f'"{system}" is an invalid OS component of "{text}": OSAndVersion specifier component must match '
            r'"^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)\\))?$": invalid argument'
        )
    for part in rest:
        if not part or not set(part) <= _VERSION:
            raise InvalidPlatform(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match '
                '"^[A-Za-z0-9_.-]+$": invalid argument'
            )
    if len(rest) > 2:
        raise InvalidPlatform(f'"{text}": cannot parse platform specifier: invalid argument')
    name = {"macos": "darwin"}.get(name.lower(), name.lower())
    if rest:
        architecture, variant = _normalize(rest[0], rest[1] if len(rest) > 1 else "")
        if len(rest) == 1 and (architecture, variant) == ("arm", "v7"):
            variant = ""
        if len(rest) == 2 and (architecture, variant) == ("arm64", ""):
            variant = "v8"
    elif name in SYSTEMS:
        architecture, variant = _normalize(os.uname().machine, "")
    else:
        architecture, variant = _normalize(system, "")
        name = "linux"
        if architecture not in ARCHITECTURES:
            raise InvalidPlatform(f'"{text}": unknown operating system or architecture: invalid argument')
        if (architecture, variant) == ("arm", "v7"):
            variant = ""
    document = {"architecture": architecture, "os": name}
    if version := version.removesuffix(")"):
        document["os.version"] = version
    if variant:
        document["variant"] = variant
    return document


def _is_version(text: str) -> bool:
    return text.endswith(")") and set(text[:-1]) <= _VERSION


def platform_query(text: str, *, complaint: str = "invalid platform: ") -> str | None:
    """As the API's JSON; None for none. Failure, beginning with `complaint`, when it is no platform."""
    if not text:
        return None
    try:
        return dumps(parse_platform(text))
    except InvalidPlatform as exc:
        from wherry.cli.console import Failure

        raise Failure(f"{complaint}{exc}") from None


def shown_platform(platform: dict[str, str]) -> str:
    """`linux/arm/v7`, `windows(10.0.17763)/amd64`; as docker lists them."""
    system = platform.get("os") or ""
    if not system:
        return "unknown"
    if version := platform.get("os.version"):
        system += f"({version})"
    parts = [system, platform.get("architecture") or "", platform.get("variant") or ""]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return "/".join(parts)
