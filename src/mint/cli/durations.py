"""Times as people write them on a command line."""

from __future__ import annotations

import re

from mint.cli.tables import stop

DURATIONS = "90m, 12h, 30d or 4w"

_PATTERN = re.compile(r"([1-9]\d{0,8})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds_of(text: str, what: str) -> int:
    """The seconds of a text like those of `DURATIONS`; any other ends the command, which says `what` it was."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        stop(f"{what} must read like {DURATIONS}")
    return int(match[1]) * _SECONDS[match[2]]
