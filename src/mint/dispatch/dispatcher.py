"""Where journaled training operations go: each to its run's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

from mint.dispatch.fleet import Fleet
from mint.dispatch.streams import Journal, RunStream
from mint.dispatch.tickets import CLOSE_SECONDS, Ticket


class Dispatcher:
    """The live runs of one server process."""

    def __init__(self, fleet: Fleet, journal: Journal, gap_seconds: float, snapshot_seconds: float) -> None:
        self._fleet = fleet
        self._journal = journal
        self._gap_seconds = gap_seconds
        self._snapshot_seconds = snapshot_seconds
        self._streams: dict[str, tuple[str, RunStream]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        fleet.on_death = self._worker_lost

    def submit(self, run_id: str, ticket: Ticket) -> None:
        """Queue a training operation; it runs after all of its run with lower numbers."""
        self._stream(run_id, ticket.model).accept(ticket)

    def expect(self, run_id: str, seq_id: int, model: str) -> None:
        """An operation will be submitted, or skipped, however long that takes; its run waits."""
        self._stream(run_id, model).expect(seq_id)

    def skip(self, run_id: str, seq_id: int) -> None:
        """Go on without an operation that was refused; a stream that is yet to be made learns it from the journal."""
        if run_id in self._streams:
            self._streams[run_id][1].skip(seq_id)

    def awaits(self, run_id: str, seq_id: int) -> bool:
        """Whether a run can go on with this number and no other."""
        return run_id in self._streams and self._streams[run_id][1].next_seq_id == seq_id

    def has(self, run_id: str) -> bool:
        """Whether a run is here: it has something to do, or is on a worker."""
        return run_id in self._streams

    def place(self, run_id: str, seq_id: int) -> tuple[int, int] | None:
        """Of a run's operations without a result: which this is, from 1 on, of how many. None: it is none."""
        numbers = self._streams[run_id][1].open_numbers if run_id in self._streams else []
        return (numbers.index(seq_id) + 1, len(numbers)) if seq_id in numbers else None

    def idle(self) -> list[str]:
        """Runs that are here and have nothing to do."""
        return [run_id for run_id, (_, stream) in self._streams.items() if stream.idle]

    def unload(self, run_id: str) -> None:
        """Free a run, once it has nothing more to do."""
        if run_id in self._streams:
            self._start(self._unload(run_id, self._streams[run_id][1]))

    async def release(self, run_id: str) -> None:
        """As `unload`; returns once it is free."""
        if run_id in self._streams:
            await asyncio.shield(self._start(self._unload(run_id, self._streams[run_id][1])))

    async def close(self) -> None:
        """Stop dispatching. Results that have come are written; what is unfinished stays in the journal."""
        for task in self._tasks:
            task.cancel()
        with suppress(TimeoutError):  # a database may refuse to take them
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(stream.stop() for _, stream in self._streams.values()))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stream(self, run_id: str, model: str) -> RunStream:
        if run_id not in self._streams:
            stream = RunStream(run_id, model, self._fleet, self._journal, self._gap_seconds, self._snapshot_seconds)
            self._streams[run_id] = model, stream
        return self._streams[run_id][1]

    def _worker_lost(self, model: str) -> None:
        for run_id, (other, stream) in list(self._streams.items()):
            if other == model and stream.idle:
                # its next operation rebuilds it: runs that nobody uses are not replayed
                del self._streams[run_id]
                self._start(stream.stop())
            elif other == model:
                stream.worker_lost()

    async def _unload(self, run_id: str, stream: RunStream) -> None:
        await stream.drain()
        # the run may have a new stream: its worker died, and it was used again
        if run_id in self._streams and self._streams[run_id][1] is stream:
            del self._streams[run_id]
            await stream.close()
