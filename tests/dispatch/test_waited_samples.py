"""Samples whose caller waits: not journaled, streamed, cancelled with the caller."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from mint.dispatch.sample_queue import SampleQueue
from mint.engine.core import Progress, Sample, Sampled, SamplingParams
from mint.errors import MintError, UnavailableError

from .fakes import MODEL, FakeFleet, play, settle, work_off

SAMPLE = Sample(None, np.array([1], np.int32), 1, SamplingParams(max_tokens=1, seed=0), stream=True)
DRAWN = Progress({0: (np.array([5], np.int32), np.array([-1.0], np.float32), None)})


def asked(fleet: FakeFleet, heard: list[Progress]) -> asyncio.Future[object]:
    queue = SampleQueue(fleet, window=4, max_waiting=4)  # type: ignore[arg-type]
    return asyncio.ensure_future(queue.run(MODEL, SAMPLE, "alice", heard.append))


def test_progress_is_passed_on_and_the_result_returned() -> None:
    async def scene() -> None:
        fleet = FakeFleet()
        worker = fleet.start()
        heard: list[Progress] = []
        answer = asked(fleet, heard)
        await settle()
        worker.tell(DRAWN)
        assert heard == [DRAWN]
        await work_off(fleet)
        assert isinstance(await answer, Sampled)

    play(scene)


def test_a_caller_that_goes_cancels_the_sample() -> None:
    async def scene() -> None:
        fleet = FakeFleet()
        worker = fleet.start()
        answer = asked(fleet, [])
        await settle()
        (sent,) = worker.answers
        answer.cancel()
        await settle()
        assert sent.cancelled()

    play(scene)


@pytest.mark.parametrize("told", [False, True])
def test_a_death_is_hidden_until_something_has_been_told(told: bool) -> None:
    async def scene() -> None:
        fleet = FakeFleet()
        worker = fleet.start()
        answer = asked(fleet, [])
        await settle()
        if told:
            worker.tell(DRAWN)
        fleet.kill()
        fleet.start()
        await work_off(fleet)
        if told:
            with pytest.raises(UnavailableError):
                await answer
        else:
            assert isinstance(await answer, Sampled)

    play(scene)


def test_a_sample_that_kills_workers_is_given_up() -> None:
    async def scene() -> None:
        fleet = FakeFleet(deadly=lambda command: command is SAMPLE)
        answer = asked(fleet, [])
        while not answer.done():
            if fleet.current is None:
                fleet.start()
            await work_off(fleet)
        with pytest.raises(MintError, match="given up"):
            await answer

    play(scene)
