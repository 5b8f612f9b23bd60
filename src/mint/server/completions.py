"""Which samples of a client have ended: what one long-poll for all of them waits for.

A feed is kept for each client that polls, and holds what has ended since it began. What ended before is in the
journal, and so is what is told to a client that comes back after the server has started again: a cursor is a time, in
microseconds since the epoch, made to grow with each entry.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from time import monotonic, time
from typing import NamedTuple

from mint.store.schema import Operation, Status

PER_CLONE = 10**9
"""Numbers of samples that a copy of a sampling client has for itself."""

KEPT = 4096
"""Entries of a feed; a client that is further behind is told from the journal."""

MARGIN_SECONDS = 60.0
"""Between an operation's result in the journal and its entry here, and for a clock that is set back.

Told twice, the SDK passes over it.
"""


class Target(NamedTuple):
    """A sampling session, and which copy of its client: 0 is the first."""

    sampling_session_id: str
    clone: int


@dataclass(frozen=True)
class Ended:
    """A sample that has a result, of so many bytes, or has failed."""

    request_id: str
    failed: bool
    size: int


@dataclass
class Feed:
    """Samples of one client, as they end.

    Attributes:
        cursor: of the last entry.
        floor: what is at or before it is known to the journal only.
        polled: when the client asked last, by the process's clock.
    """

    cursor: int
    floor: int
    entries: deque[tuple[int, Ended]] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    polled: float = field(default_factory=monotonic)

    def put(self, ended: Ended) -> None:
        """Add an entry, and wake who waits."""
        self.cursor = max(self.cursor + 1, _now())
        self.entries.append((self.cursor, ended))
        if len(self.entries) > KEPT:
            self.floor, _ = self.entries.popleft()
        self.news.set()

    def after(self, cursor: int) -> list[Ended]:
        """Entries later than a cursor."""
        return [ended for place, ended in self.entries if place > cursor]

    async def wait(self, cursor: int, seconds: float) -> list[Ended]:
        """As `after`; while there are none, they are given so long to come."""
        if not (found := self.after(cursor)) and seconds > 0:
            self.news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self.news.wait()
            except TimeoutError:
                pass
            found = self.after(cursor)
        return found


class Completions:
    """The feeds of this process."""

    def __init__(self) -> None:
        self._feeds: dict[Target, Feed] = {}
        self._closing = False

    @property
    def closing(self) -> bool:
        """Whether polls are to be answered at once."""
        return self._closing

    def feed(self, target: Target, after: int, idle_seconds: float) -> Feed:
        """The feed of a client, which begins now if there is none; feeds that nobody polls for so long end.

        Args:
            after: the client's cursor. A feed that begins does so behind it, whatever the clock says.
        """
        feed = self._feeds.get(target)
        if feed is None:
            self._feeds = {key: each for key, each in self._feeds.items() if monotonic() - each.polled < idle_seconds}
            feed = self._feeds[target] = Feed(cursor=(now := max(_now(), after + 1)), floor=now)
        feed.polled = monotonic()
        return feed

    def put(self, operation: Operation) -> None:
        """An operation has its result, and it is in the journal."""
        feed = self._feeds.get(Target(operation.stream, operation.seq_id // PER_CLONE))
        if feed is not None:
            failed = operation.status == Status.FAILED
            feed.put(Ended(operation.request_id, failed, len(operation.result or b"")))

    def close(self) -> None:
        """The server is stopping: let go of whoever waits."""
        self._closing = True
        for feed in self._feeds.values():
            feed.news.set()


def _now() -> int:
    return int(time() * 1e6)
