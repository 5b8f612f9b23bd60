"""Where journaled operations go: training to its run's stream, samples straight to the model's worker."""

from __future__ import annotations

import asyncio
import logging

from mint.dispatch.fleet import Fleet
from mint.dispatch.streams import Journal, RunStream, Ticket
from mint.engine.core import Result, WorkerDiedError
from mint.errors import MintError

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Workers that a sample request may outlive before it is held to be what kills them."""


class Dispatcher:
    """The live runs and samples of one server process."""

    def __init__(self, fleet: Fleet, journal: Journal, gap_seconds: float) -> None:
        self._fleet = fleet
        self._journal = journal
        self._gap_seconds = gap_seconds
        self._streams: dict[str, tuple[str, RunStream]] = {}
        self._samples: set[asyncio.Task[None]] = set()
        fleet.on_death = self._worker_lost

    def submit(self, run_id: str, ticket: Ticket) -> None:
        """Queue a training operation; it runs after all of its run with lower numbers."""
        self._stream(run_id, ticket.model).accept(ticket)

    def skip(self, run_id: str, model: str, seq_id: int) -> None:
        """Go on without an operation that was refused."""
        self._stream(run_id, model).skip(seq_id)

    def sample(self, ticket: Ticket) -> None:
        """Queue a sample request; samples have no order."""
        task = asyncio.create_task(self._sample(ticket))
        self._samples.add(task)
        task.add_done_callback(self._samples.discard)

    async def unload(self, run_id: str) -> None:
        """Free a run that has nothing more to do; one that has keeps its place."""
        model_and_stream = self._streams.get(run_id)
        if model_and_stream is not None and model_and_stream[1].idle:
            del self._streams[run_id]
            await model_and_stream[1].close()

    async def close(self) -> None:
        """Stop dispatching. What is unfinished stays in the journal."""
        for task in list(self._samples):
            task.cancel()

    def _stream(self, run_id: str, model: str) -> RunStream:
        if run_id not in self._streams:
            stream = RunStream(run_id, model, self._fleet, self._journal, self._gap_seconds)
            self._streams[run_id] = model, stream
        return self._streams[run_id][1]

    def _worker_lost(self, model: str) -> None:
        for other, stream in self._streams.values():
            if other == model:
                stream.worker_lost()

    async def _sample(self, ticket: Ticket) -> None:
        outcome: Result | MintError = MintError(
            f"the request outlived {MAX_ATTEMPTS} workers and was given up"
        )
        for _ in range(MAX_ATTEMPTS):
            worker = await self._fleet.worker(ticket.model)
            try:
                outcome = await worker.execute(ticket.command)
            except WorkerDiedError:
                continue
            except MintError as error:
                outcome = error
            break
        await ticket.finish(outcome)
