"""A journaled operation on its way to a worker, and when it is given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mint.engine.core import Command, Result
from mint.errors import MintError

CLOSE_SECONDS = 5.0
"""For the results that have come to be written when the server stops."""

SUSPECT_DEATHS = 2
"""Workers that died over an operation before it is sent to the next one by itself."""
MAX_DEATHS = 3
"""Workers that died over an operation before it is held to be what kills them, and given up."""


@dataclass(frozen=True)
class Ticket:
    """A journaled operation on its way to a worker. `finish` writes the result down and wakes who waits."""

    request_id: str
    seq_id: int
    model: str
    command: Command
    finish: Callable[[Result | MintError], Awaitable[None]]


def given_up() -> MintError:
    """How an operation ends that kills workers."""
    return MintError(f"{MAX_DEATHS} engine workers ended over this operation; it was given up")
