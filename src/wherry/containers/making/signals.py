"""Signals by the names and numbers that users write."""

import signal as signals

from wherry.errors import InvalidParameter


def parse_signal(text: str) -> int:
    """A signal by name (with or without SIG, any case, RTMIN+n) or number; raises InvalidParameter."""
    word = text.upper().removeprefix("SIG")
    if word.isdigit() and 0 < int(word) <= signals.SIGRTMAX:
        return int(word)
    base, plus, offset = word.partition("+")
    if plus and base == "RTMIN" and offset.isdigit() and int(offset) <= signals.SIGRTMAX - signals.SIGRTMIN:
        return signals.SIGRTMIN + int(offset)
    base, minus, offset = word.partition("-")
    if minus and base == "RTMAX" and offset.isdigit() and int(offset) <= signals.SIGRTMAX - signals.SIGRTMIN:
        return signals.SIGRTMAX - int(offset)
    found = getattr(signals, "SIG" + word, None)
    if not isinstance(found, signals.Signals):
        raise InvalidParameter(f"invalid signal: {text}")
    return int(found)
