"""Times as people write them on a command line."""

from __future__ import annotations

import re

DURATIONS = "30m, 12h, 90d or 4w"

_PATTERN = re.compile(r"([1-9]\d{0,8})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(text: str) -> int | None:
    """The seconds of a text like those of `DURATIONS`; None for any other."""
    match = _PATTERN.fullmatch(text)
    return int(match[1]) * _SECONDS[match[2]] if match is not None else None
