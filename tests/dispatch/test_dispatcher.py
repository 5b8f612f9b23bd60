"""Streams and samples of several runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from mint.dispatch.dispatcher import Dispatcher
from mint.dispatch.streams import Ticket
from mint.engine.core import CreateRun, LoraShape, Sample, Sampled, SamplingParams
from mint.errors import MintError

from .fakes import MODEL, FakeFleet, FakeJournal, settle, step, work_off


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scene()

    asyncio.run(bounded())


def sample(outcomes: list[Any], seed: int = 0) -> Ticket:
    async def finish(outcome: Any) -> None:
        outcomes.append(outcome)

    command = Sample(None, np.array([1], np.int32), 1, SamplingParams(max_tokens=1, seed=seed))
    return Ticket(f"req-{seed}", seed, MODEL, command, finish)


def dispatcher_of(fleet: FakeFleet, journal: FakeJournal) -> Dispatcher:
    return Dispatcher(fleet, journal, 60.0, math.inf)  # type: ignore[arg-type]


def test_runs_and_samples_do_not_wait_for_each_other() -> None:
    async def scene() -> None:
        fleet, journal = FakeFleet(), FakeJournal()
        dispatcher = dispatcher_of(fleet, journal)
        worker = fleet.start()
        outcomes: list[Any] = []
        dispatcher.submit("run", journal.ticket(0))
        dispatcher.submit("run", journal.ticket(2))
        dispatcher.sample(sample(outcomes, seed=9))
        await settle()
        assert [type(command) for command in worker.backlog] == [CreateRun, Sample] or [
            type(command) for command in worker.backlog
        ] == [Sample, CreateRun]
        await work_off(fleet)
        assert isinstance(outcomes[0], Sampled)

    play(scene)


def test_a_sample_outlives_workers_up_to_a_limit() -> None:
    async def scene(deaths: int) -> list[Any]:
        fleet = FakeFleet()
        dispatcher = dispatcher_of(fleet, FakeJournal())
        outcomes: list[Any] = []
        dispatcher.sample(sample(outcomes))
        for _ in range(deaths):
            fleet.start()
            await settle()
            fleet.kill()
        fleet.start()
        await work_off(fleet)
        return outcomes

    (outcome,) = asyncio.run(scene(2))
    assert isinstance(outcome, Sampled)
    (outcome,) = asyncio.run(scene(3))
    assert isinstance(outcome, MintError)
    assert outcome.category == "server"


def test_samples_survive_a_killer_among_them() -> None:
    async def scene() -> None:
        fleet = FakeFleet(deadly=lambda command: isinstance(command, Sample) and command.params.seed == 3)
        dispatcher = dispatcher_of(fleet, FakeJournal())
        outcomes: dict[int, list[Any]] = {seed: [] for seed in range(8)}
        for seed, mine in outcomes.items():
            dispatcher.sample(sample(mine, seed))
        while not all(outcomes.values()):
            if fleet.current is None:
                fleet.start()
            await work_off(fleet)
        assert [isinstance(mine[0], Sampled) for mine in outcomes.values()] == [seed != 3 for seed in range(8)]

    play(scene)


def test_a_refusal_without_a_stream_makes_none() -> None:
    async def scene() -> None:
        fleet, journal = FakeFleet(), FakeJournal()
        dispatcher = dispatcher_of(fleet, journal)
        dispatcher.skip("run", 5)
        await settle()
        assert journal.histories == []

    play(scene)


def test_unload_waits_for_the_runs_work_and_nobody_waits_for_unload() -> None:
    async def scene() -> None:
        fleet, journal = FakeFleet(), FakeJournal()
        dispatcher = dispatcher_of(fleet, journal)
        worker = fleet.start()
        for number in (0, 1):
            dispatcher.submit("run", journal.ticket(number))
        await settle()
        dispatcher.unload("run")
        dispatcher.unload("run")
        dispatcher.unload("unknown")
        await work_off(fleet)
        assert sorted(journal.done) == [0, 1]
        assert worker.runs == {}
        # the run comes back from its history when something more is asked of it
        dispatcher.submit("run", journal.ticket(2))
        await work_off(fleet)
        assert worker.runs["run"] == [journal.done[number] for number in range(3)]

    play(scene)


def test_a_death_concerns_the_runs_of_its_model_that_have_work() -> None:
    async def scene() -> None:
        fleet = FakeFleet()
        journal = FakeJournal()
        dispatcher = dispatcher_of(fleet, journal)
        fleet.start()
        dispatcher.submit("run", journal.ticket(0))
        await work_off(fleet)
        fleet.on_death("another model")
        dispatcher.submit("run", journal.ticket(1))
        await settle()
        fleet.kill()
        worker = fleet.start()
        await work_off(fleet)
        assert len(journal.histories) == 2
        fleet.kill()
        worker = fleet.start()
        await work_off(fleet)
        assert worker.executed == []  # nobody uses the run now
        dispatcher.submit("run", journal.ticket(2))
        await work_off(fleet)
        assert worker.runs["run"] == [journal.done[number] for number in range(3)]

    play(scene)


def test_close_writes_results_that_have_come_and_leaves_the_rest() -> None:
    async def scene() -> None:
        fleet, journal = FakeFleet(), FakeJournal(writes_slowly=40)
        dispatcher = dispatcher_of(fleet, journal)
        worker = fleet.start()
        outcomes: list[Any] = []
        for number in (0, 1):
            dispatcher.submit("run", journal.ticket(number))
        dispatcher.sample(sample(outcomes))
        await settle()
        while not isinstance(worker.backlog[0], CreateRun):
            worker.work()
        worker.work()
        await asyncio.sleep(0)
        worker.die()
        await dispatcher.close()
        assert sorted(journal.done) == [0]

    play(scene)


def test_tickets_of_a_create_and_a_step_differ() -> None:
    assert FakeJournal().ticket(0).command == CreateRun("run", LoraShape(4, 0))
    assert FakeJournal().ticket(1).command == step(1)
