"""Several samples of one operation: each stands in line by itself, and they finish together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from mint.dispatch.sample_queue import SampleQueue, SampleTicket
from mint.engine.core import Result, SampleBatch, Sampled, SampledBatch
from mint.errors import MintError


def add_batch(queue: SampleQueue, batch: SampleTicket, command: SampleBatch) -> None:
    """Take all samples of an operation. Its `finish` is called once, when all have ended or one has failed.

    Args:
        batch: the operation; its command is that of its first sample.
    """
    gathering = _Gathering(queue, batch.request_id, len(command.samples), batch.finish)
    for index, sample in enumerate(command.samples):
        finish = partial(gathering.take, index)
        name = gathering.names[index]
        queue.add(SampleTicket(name, batch.seq_id, batch.model, sample, finish, batch.owner, batch.client))


class _Gathering:
    def __init__(
        self, queue: SampleQueue, request_id: str, count: int, finish: Callable[[Result | MintError], Awaitable[None]]
    ) -> None:
        self.names = [f"{request_id}/{index}" for index in range(count)]
        self._queue = queue
        self._finish = finish
        self._results: dict[int, Sampled] = {}
        self._is_over = False

    async def take(self, index: int, outcome: Result | MintError) -> None:
        """One has ended; with the first that fails, all others are given up."""
        if self._is_over:
            return
        if not isinstance(outcome, Sampled):
            self._is_over = True
            error = outcome if isinstance(outcome, MintError) else MintError(f"the engine answered {type(outcome)}")
            await self._queue.cancel(self.names, error)
            await self._finish(error)
            return
        self._results[index] = outcome
        if len(self._results) == len(self.names):
            self._is_over = True
            await self._finish(SampledBatch(tuple(self._results[index] for index in range(len(self.names)))))
