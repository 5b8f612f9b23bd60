"""Streams of several runs."""

from __future__ import annotations

import asyncio
import math

from mint.dispatch.dispatcher import Dispatcher
from mint.engine.core import CreateRun, LoraShape

from .fakes import FakeFleet, FakeJournal, play, settle, step, work_off


def dispatcher_of(fleet: FakeFleet, journal: FakeJournal) -> Dispatcher:
    return Dispatcher(fleet, journal, 60.0, math.inf)  # type: ignore[arg-type]


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
        for number in (0, 1):
            dispatcher.submit("run", journal.ticket(number))
        await settle()
        worker.work()
        await asyncio.sleep(0)
        worker.die()
        await dispatcher.close()
        assert sorted(journal.done) == [0]

    play(scene)


def test_tickets_of_a_create_and_a_step_differ() -> None:
    assert FakeJournal().ticket(0).command == CreateRun("run", LoraShape(4, 0))
    assert FakeJournal().ticket(1).command == step(1)
