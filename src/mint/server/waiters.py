"""Who waits for which result. A finished operation wakes its long-polls; nothing here is polled."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Waiters:
    """Events of the requests that someone waits for now."""

    def __init__(self) -> None:
        self._events: dict[str, list[asyncio.Event]] = defaultdict(list)

    @contextmanager
    def waiting_for(self, request_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the request finishes. Take it before looking, lest it be missed."""
        event = asyncio.Event()
        self._events[request_id].append(event)
        try:
            yield event
        finally:
            self._events[request_id].remove(event)
            if not self._events[request_id]:
                del self._events[request_id]

    def wake(self, request_id: str) -> None:
        """The request has finished and its result is written."""
        for event in self._events.get(request_id, ()):
            event.set()
