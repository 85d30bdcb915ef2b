"""Detach keys: the key sequence that ends an attach or exec session and leaves the process running. Pure.

Grammar: keys joined by commas; a key is one character, `ctrl-` and one of `a`-`z @ [ \\ ] ^ _`, or `DEL`.
"""

DEFAULT = "ctrl-p,ctrl-q"

_CONTROL = {f"ctrl-{character}": code for code, character in enumerate("@abcdefghijklmnopqrstuvwxyz[\\]^_")}


def parse(text: str) -> bytes:
    """The bytes a terminal sends for these keys; raises ValueError for what is no key."""
    keys = bytearray()
    for key in text.split(","):
        if key in _CONTROL:
            keys.append(_CONTROL[key])
        elif key == "DEL":
            keys.append(127)
        elif len(key) == 1 and key.isascii():
            keys.append(ord(key))
        else:
            raise ValueError(f"Unknown character: '{key}'")
    return bytes(keys)


class Watcher:
    """Looks for the sequence in what a client types, however the bytes are cut."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""  # the beginning of the sequence: not passed on until the next byte tells

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what to pass on, whether the sequence is complete). Nothing behind the sequence is passed on."""
        data = self._held + data
        end = data.find(self._keys)
        if end >= 0:
            self._held = b""
            return data[:end], True
        longest = min(len(self._keys) - 1, len(data))
        held = next((size for size in range(longest, 0, -1) if data.endswith(self._keys[:size])), 0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False

    def flush(self) -> bytes:
        """What is still held when the client has ended its sending."""
        held, self._held = self._held, b""
        return held
