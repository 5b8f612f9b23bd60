"""Large answers as JSON, in a thread and in pieces, so that the event loop goes on for everyone else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

PIECE = 64
"""Entries of a list that are written in one go. The library holds the interpreter's lock from one call to the next."""


def encode(value: Any) -> str:
    """As `json.dumps`, with pauses."""
    if not _is_long(value):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return _joined("{}", (f"{encode(name)}: {encode(inner)}" for name, inner in value.items()))
    if any(map(_is_long, value)):
        return _joined("[]", map(encode, value))
    pieces = (value[start : start + PIECE] for start in range(0, len(value), PIECE))
    return _joined("[]", (json.dumps(piece, ensure_ascii=False)[1:-1] for piece in pieces))


def _joined(brackets: str, parts: Iterable[str]) -> str:
    return brackets[0] + ", ".join(parts) + brackets[1]


def _is_long(value: Any) -> bool:
    """Whether there is a list of more than a piece in it."""
    if isinstance(value, dict):
        return any(map(_is_long, value.values()))
    return isinstance(value, list) and (len(value) > PIECE or any(map(_is_long, value)))
