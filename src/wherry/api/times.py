"""Points in time as the API writes them: seconds since the epoch with an optional fraction."""

import re

from wherry.errors import InvalidParameter

_TIMESTAMP = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{1,9}))?\Z")


def parse_timestamp(text: str) -> int | None:
    """ns since the epoch; None for "". Raises InvalidParameter in Docker's words."""
    if not text:
        return None
    match = _TIMESTAMP.match(text)
    if match is None:
        raise InvalidParameter(f'strconv.ParseInt: parsing "{text.partition(".")[0]}": invalid syntax')
    return int(match[1]) * 10**9 + int((match[2] or "").ljust(9, "0"))
