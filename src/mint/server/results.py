"""Results in memory: of every operation under way, and of those that finished last.

The journal has all results; this is where a long-poll waits, and what spares the journal the question in the common
case of a client that asks for what it has just submitted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from mint.store.schema import Operation

KEPT = 1024
KEPT_BYTES = 64 << 20
"""Finished results that stay in memory: at most so many, of at most so many bytes in sum."""


@dataclass
class _Entry:
    operation: Operation
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Results:
    """Operations of this process, by request id."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Entry] = {}
        self._kept: OrderedDict[str, Operation] = OrderedDict()
        self._kept_bytes = 0
        self._closing = False

    @property
    def under_way(self) -> int:
        """How many operations are."""
        return len(self._under_way)

    def folders(self) -> set[str]:
        """Checkpoint folders that operations under way read."""
        under_way = list(self._under_way.values())  # the sweeper asks from the database's thread
        return {entry.operation.directory for entry in under_way if entry.operation.directory}

    def expects(self, request_id: str) -> bool:
        """Whether that operation is under way."""
        return request_id in self._under_way

    def expect(self, operation: Operation) -> None:
        """An operation is on its way to a worker."""
        self._under_way[operation.request_id] = _Entry(operation)

    def put(self, operation: Operation) -> None:
        """An operation has finished and its result is in the journal: wake whoever waits."""
        entry = self._under_way.pop(operation.request_id, None)
        if entry is not None:
            entry.operation = operation
            entry.finished.set()
        self._kept[operation.request_id] = operation
        self._kept_bytes += len(operation.result or b"")
        while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.result or b"")

    def find(self, request_id: str) -> Operation | None:
        """The operation as it is now; None if it finished long ago, or never was."""
        entry = self._under_way.get(request_id)
        return entry.operation if entry is not None else self._kept.get(request_id)

    def of_stream(self, stream: str) -> list[str]:
        """Request ids of the operations under way in a stream."""
        return [name for name, entry in self._under_way.items() if entry.operation.stream == stream]

    async def wait(self, request_id: str, seconds: float) -> Operation | None:
        """As `find`, but an operation under way is given so long to finish."""
        entry = self._under_way.get(request_id)
        if entry is None or self._closing:
            return self.find(request_id)
        try:
            async with asyncio.timeout(seconds):
                await entry.finished.wait()
        except TimeoutError:
            pass
        return entry.operation

    def close(self) -> None:
        """The server is stopping: let go of whoever waits, with what there is."""
        self._closing = True
        for entry in self._under_way.values():
            entry.finished.set()
