"""Capabilities, masked paths and seccomp."""

NAMES = ("CAP_CHOWN",)


def available() -> list[str]:
    return list(NAMES)
