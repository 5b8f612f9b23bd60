"""Several samples of one operation: their results in order, one end for all, and one failure that ends them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mint.dispatch.sample_batches import add_batch
from mint.dispatch.sample_queue import SampleQueue, SampleTicket
from mint.engine.core import Sample, SampleBatch, SampledBatch, SamplingParams
from mint.errors import BadRequestError, OperationCancelledError

from .fakes import MODEL, FakeFleet, play, settle, work_off


class Batch:
    """A queue with a batch of `count` in it, beside another sample."""

    def __init__(self, count: int, window: int = 2) -> None:
        self.fleet = FakeFleet()
        self.worker = self.fleet.start()
        self.queue = SampleQueue(self.fleet, window, 100)  # type: ignore[arg-type]
        self.outcomes: list[Any] = []
        self.others: list[Any] = []
        samples = tuple(self._sample(seed) for seed in range(count))
        self._add("batch", samples[0], self.outcomes, SampleBatch(samples))
        self._add("other", self._sample(99), self.others)

    def _sample(self, seed: int) -> Sample:
        return Sample(None, np.array([1], np.int32), 1, SamplingParams(max_tokens=seed + 1, seed=seed))

    def _add(self, name: str, sample: Sample, outcomes: list[Any], batch: SampleBatch | None = None) -> None:
        async def finish(outcome: Any) -> None:
            outcomes.append(outcome)

        ticket = SampleTicket(name, 0, MODEL, sample, finish, "alice", "session")
        if batch is None:
            self.queue.add(ticket)
        else:
            add_batch(self.queue, ticket, batch)

    @property
    def seeds(self) -> list[int]:
        """Of what the worker has executed."""
        return [command.params.seed for command in self.worker.executed if isinstance(command, Sample)]


def test_results_come_together_and_in_order() -> None:
    async def scene() -> None:
        batch = Batch(5)
        await settle()
        assert batch.worker.work()
        await settle()
        assert not batch.outcomes
        await work_off(batch.fleet)
        (outcome,) = batch.outcomes
        assert isinstance(outcome, SampledBatch)
        assert [len(each.sequences[0].tokens) for each in outcome.results] == [1, 2, 3, 4, 5]
        assert sorted(batch.seeds) == [0, 1, 2, 3, 4, 99]
        assert len(batch.others) == 1

    play(scene)


def test_the_first_that_fails_ends_the_others() -> None:
    async def scene() -> None:
        batch = Batch(5)
        refusal = BadRequestError("no")
        batch.worker.refused = lambda command: refusal if command.params.seed == 1 else None  # type: ignore[union-attr]
        await settle()
        await work_off(batch.fleet)
        assert batch.outcomes == [refusal]
        assert batch.queue.of_request("batch") == []
        assert 4 not in batch.seeds
        assert len(batch.others) == 1

    play(scene)


def test_a_batch_is_cancelled_by_its_own_name() -> None:
    async def scene() -> None:
        batch = Batch(4)
        await settle()
        names = batch.queue.of_request("batch")
        assert sorted(names) == [f"batch/{index}" for index in range(4)]
        error = OperationCancelledError("enough")
        await batch.queue.cancel(names, error)
        await work_off(batch.fleet)
        assert batch.outcomes == [error]
        assert len(batch.others) == 1
        assert set(batch.seeds) <= {99}

    play(scene)
