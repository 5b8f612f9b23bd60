"""How fast requests finish."""

from __future__ import annotations

from collections import deque
from time import monotonic

WINDOW_SECONDS = 60.0


class Rate:
    """Requests per second, over the last minute, or since requests began to wait if that is less."""

    def __init__(self) -> None:
        self._started = monotonic()
        self._finished: deque[float] = deque()

    def start(self) -> None:
        """Requests begin to wait: what was before says nothing, as it may have been the worker that waited."""
        self._started = monotonic()
        self._finished.clear()

    def count(self) -> None:
        """A request has finished."""
        self._finished.append(monotonic())
        self._forget()

    @property
    def per_second(self) -> float | None:
        """None while nothing was measured."""
        self._forget()
        elapsed = min(WINDOW_SECONDS, monotonic() - self._started)
        return len(self._finished) / elapsed if self._finished and elapsed > 0 else None

    def _forget(self) -> None:
        oldest = monotonic() - WINDOW_SECONDS
        while self._finished and self._finished[0] < oldest:
            self._finished.popleft()
