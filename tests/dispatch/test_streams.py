"""One run's stream: order, gaps, deaths of workers, histories."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mint.dispatch.streams import RunStream
from mint.engine.core import Command, Stepped, UnloadRun
from mint.errors import BadRequestError, MintError, NotFoundError

from .fakes import MODEL, FakeClock, FakeFleet, FakeJournal, play, settle, step, work_off

GAP = 30.0


class World:
    """A stream with everything around it."""

    def __init__(
        self, deadly: Callable[[Command], bool] = lambda _: False, writes_slowly: int = 0, snapshots: float = math.inf
    ) -> None:
        self.clock = FakeClock()
        self.fleet = FakeFleet(deadly)
        self.journal = FakeJournal(writes_slowly=writes_slowly)
        self.stream = RunStream("run", MODEL, self.fleet, self.journal, GAP, snapshots)  # type: ignore[arg-type]
        self.fleet.on_death = lambda _: self.stream.worker_lost()

    def arrive(self, *numbers: int) -> None:
        for number in numbers:
            self.stream.accept(self.journal.ticket(number))

    @property
    def state(self) -> list[Command]:
        """What the run on the present worker was made by."""
        assert self.fleet.current is not None
        return self.fleet.current.runs["run"]


# ---------------------------------------------------------------- order


@given(st.permutations(range(7)))
def test_any_order_of_arrival_is_one_order_of_execution(numbers: list[int]) -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        for number in numbers:
            world.arrive(number)
            await work_off(world.fleet)
        assert world.state == [world.journal.done[number] for number in range(7)]
        assert set(world.journal.finishes.values()) == {1}

    play(scene)


def test_nothing_waits_for_a_predecessors_result() -> None:
    async def scene() -> None:
        world = World()
        worker = world.fleet.start()
        world.arrive(0, 1, 2)
        await settle()
        assert len(worker.backlog) == 3

    play(scene)


def test_a_refused_number_is_passed_over_whenever_it_is_known() -> None:
    async def scene() -> None:
        world = World()
        world.arrive(0, 2)
        world.stream.skip(1)
        world.fleet.start()
        await work_off(world.fleet)
        world.arrive(4, 5)
        await work_off(world.fleet)
        world.stream.skip(3)
        await work_off(world.fleet)
        world.stream.skip(3)
        world.stream.skip(5)
        world.arrive(6)
        await work_off(world.fleet)
        assert sorted(world.journal.done) == [0, 2, 4, 5, 6]

    play(scene)


def test_a_number_that_never_arrives_is_given_up() -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0, 3, 5)
        for passed, done in ((GAP - 1, [0]), (1, [0, 3]), (GAP - 1, [0, 3]), (1, [0, 3, 5])):
            await work_off(world.fleet)
            world.clock.advance(passed)
            await work_off(world.fleet)
            assert sorted(world.journal.done) == done

    play(scene)


def test_a_gap_that_closes_in_time_is_none() -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0, 2)
        await work_off(world.fleet)
        world.clock.advance(GAP - 1)
        world.arrive(1, 4)
        await work_off(world.fleet)
        world.clock.advance(GAP - 1)  # the wait for 3 began with 4
        await work_off(world.fleet)
        assert sorted(world.journal.done) == [0, 1, 2]
        world.arrive(3)
        await work_off(world.fleet)
        assert world.state == [world.journal.done[number] for number in range(5)]

    play(scene)


def test_who_comes_too_late_is_told_so_and_changes_nothing() -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0, 2)
        await work_off(world.fleet)
        world.clock.advance(GAP)
        world.arrive(1, 3)
        await work_off(world.fleet)
        late = world.journal.outcomes[1]
        assert isinstance(late, BadRequestError)
        assert late.field == "seq_id"
        assert sorted(world.journal.done) == [0, 2, 3]

    play(scene)


def test_time_without_a_worker_counts_against_nobody() -> None:
    async def scene() -> None:
        world = World()
        world.arrive(0, 2)
        await settle()
        world.clock.advance(10 * GAP)
        world.fleet.start()
        await work_off(world.fleet)
        assert sorted(world.journal.done) == [0]
        world.arrive(1)
        await work_off(world.fleet)
        assert sorted(world.journal.done) == [0, 1, 2]
        world.arrive(4)
        await settle()
        world.fleet.kill()
        world.clock.advance(GAP)
        world.arrive(3)
        world.fleet.start()
        await work_off(world.fleet)
        assert sorted(world.journal.done) == [0, 1, 2, 3, 4]

    play(scene)


# ---------------------------------------------------------------- deaths


def test_a_death_is_followed_by_replay_and_what_was_open() -> None:
    async def scene() -> None:
        world = World()
        first = world.fleet.start()
        world.arrive(0, 1, 2, 3)
        await settle()
        first.work()
        first.work()
        await settle()
        world.fleet.kill()
        world.arrive(4)
        second = world.fleet.start()
        await work_off(world.fleet)
        assert [len(history.commands) for history in world.journal.histories] == [0, 2]
        assert second.executed == [world.journal.done[number] for number in range(5)]
        assert world.state == second.executed
        assert set(world.journal.finishes.values()) == {1}

    play(scene)


def test_a_result_that_is_being_written_at_the_death_is_history() -> None:
    async def scene() -> None:
        world = World(writes_slowly=20)
        first = world.fleet.start()
        world.arrive(0, 1)
        await settle()
        first.work()
        first.work()
        await asyncio.sleep(0)
        assert not world.journal.done
        world.fleet.kill()
        world.fleet.start()
        await work_off(world.fleet)
        await work_off(world.fleet)
        await work_off(world.fleet)
        assert world.state == [world.journal.done[0], world.journal.done[1]]
        assert set(world.journal.finishes.values()) == {1}

    play(scene)


def test_a_second_death_does_not_lose_a_result_that_is_being_written() -> None:
    async def scene() -> None:
        world = World(writes_slowly=100)
        first = world.fleet.start()
        world.arrive(0)
        await settle()
        first.work()
        await asyncio.sleep(0)
        for _ in range(2):
            world.fleet.kill()
            world.fleet.start()
            await settle()  # the stream waits for the write
        for _ in range(5):
            await work_off(world.fleet)
        assert world.journal.finishes == {0: 1}
        assert world.state == [world.journal.done[0]]

    play(scene)


def test_a_death_during_the_replay_starts_it_over() -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0, 1, 2)
        await work_off(world.fleet)
        for _ in range(6):  # no operation is open: none may be blamed
            world.fleet.kill()
            worker = world.fleet.start()
            await settle()
            worker.work()
        world.arrive(3)
        await work_off(world.fleet)
        assert world.state == [world.journal.done[number] for number in range(4)]
        assert set(world.journal.finishes.values()) == {1}

    play(scene)


def test_an_open_operation_is_not_blamed_for_a_death_before_its_turn() -> None:
    async def scene() -> None:
        world = World()
        worker = world.fleet.start()
        world.arrive(0, 1)
        await settle()
        worker.work()
        await settle()
        for _ in range(6):
            world.fleet.kill()
            world.fleet.start()
            await settle()  # the replay is with the worker, and not done
        await work_off(world.fleet)
        assert sorted(world.journal.done) == [0, 1]

    play(scene)


def test_a_failed_operation_is_not_replayed() -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0)
        unknown = step(1, "elsewhere")
        world.stream.accept(world.journal.ticket(1, unknown))
        world.arrive(2)
        await work_off(world.fleet)
        assert isinstance(world.journal.outcomes[1], MintError)
        world.fleet.kill()
        world.fleet.start()
        await work_off(world.fleet)
        assert world.state == [world.journal.done[0], world.journal.done[2]]

    play(scene)


def test_a_run_that_cannot_be_restored_says_so_and_is_tried_again_on_the_next_worker() -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0, 1)
        await work_off(world.fleet)
        history, world.journal.history = world.journal.history, refuse  # type: ignore[method-assign]
        world.arrive(2)
        world.fleet.kill()
        world.fleet.start()
        world.arrive(3)
        await work_off(world.fleet)
        world.arrive(4)
        await work_off(world.fleet)
        for number in (2, 3, 4):
            assert "could not be restored" in str(world.journal.outcomes[number])
        world.journal.history = history  # type: ignore[method-assign]
        world.fleet.kill()
        world.fleet.start()
        world.arrive(5)
        await work_off(world.fleet)
        assert isinstance(world.journal.outcomes[5], Stepped)

    async def refuse(_run_id: str) -> Any:
        raise NotFoundError("the files of tinker://x are gone")

    play(scene)


def test_what_kills_every_worker_is_given_up_and_its_followers_go_on() -> None:
    async def scene() -> None:
        world = World(deadly=lambda command: command == step(2))
        world.arrive(0, 1, 2, 3)
        while len(world.journal.outcomes) < 4:
            if world.fleet.current is None:
                world.fleet.start()
            await work_off(world.fleet)
        assert world.fleet.deaths == 3
        assert "3 engine workers ended" in str(world.journal.outcomes[2])
        assert sorted(world.journal.done) == [0, 1, 3]

    play(scene)


def test_a_bystander_of_a_killer_is_not_given_up() -> None:
    async def scene() -> None:
        fleet = FakeFleet(deadly=lambda command: command == step(1, "killer"))
        journals = {name: FakeJournal(name) for name in ("bystander", "killer", "other")}
        streams = {
            name: RunStream(name, MODEL, fleet, journal, GAP, math.inf)  # type: ignore[arg-type]
            for name, journal in journals.items()
        }
        fleet.on_death = lambda _: [stream.worker_lost() for stream in streams.values()]
        for name, journal in journals.items():
            for number in (0, 1, 2):
                streams[name].accept(journal.ticket(number))
        while any(len(journal.outcomes) < 3 for journal in journals.values()):
            if fleet.current is None:
                fleet.start()
            await work_off(fleet)
        assert sorted(journals["killer"].done) == [0, 2]
        for name in ("bystander", "other"):
            assert sorted(journals[name].done) == [0, 1, 2]

    play(scene)


EVENTS = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 11)),
    st.tuples(st.just("skip"), st.integers(1, 11)),
    st.tuples(st.just("work"), st.integers(1, 4)),
    st.tuples(st.just("turn"), st.integers(1, 12)),
    st.tuples(st.just("kill"), st.just(0)),
    st.tuples(st.just("start"), st.just(0)),
)


@given(st.lists(EVENTS, max_size=60), st.integers(0, 20), st.sampled_from([math.inf, 0.0]))
@settings(max_examples=200, deadline=None)
@example([("start", 0), ("arrive", 0), *[("turn", 2), ("kill", 0), ("start", 0)] * 3], 0, 0.0)
def test_whatever_happens_each_operation_is_executed_once_and_in_order(
    events: list[tuple[str, int]], writes_slowly: int, snapshots: float
) -> None:
    async def scene() -> None:
        world = World(writes_slowly=writes_slowly, snapshots=snapshots)
        arrived: set[int] = set()
        skipped: set[int] = set()
        for event, value in events:
            if event == "arrive" and value not in arrived | skipped:
                arrived.add(value)
                world.arrive(value)
            elif event == "skip" and value not in arrived | skipped:
                skipped.add(value)
                world.stream.skip(value)
            elif event == "work":
                for _ in range(value):
                    if world.fleet.current is not None:
                        world.fleet.current.work()
            elif event == "turn":
                for _ in range(value):
                    await asyncio.sleep(0)
            elif event == "kill":
                world.fleet.kill()
            elif event == "start" and world.fleet.current is None:
                world.fleet.start()
        # the rest arrives, and nothing dies any more
        world.arrive(*(number for number in range(12) if number not in arrived | skipped))
        if world.fleet.current is None:
            world.fleet.start()
        expected = set(range(12)) - skipped
        while world.journal.finishes.keys() != expected:
            await work_off(world.fleet)
        assert set(world.journal.finishes.values()) == {1}
        done = [world.journal.done[number] for number in sorted(world.journal.done)]
        given_up = expected - world.journal.done.keys()
        if 0 in given_up:  # then there is no run, and so nothing that the others could be carried out on
            assert (done, world.fleet.deaths >= 3) == ([], True)
            return
        assert world.state == done
        assert len(given_up) <= world.fleet.deaths // 3

    play(scene)


# ---------------------------------------------------------------- the end


def test_drain_waits_for_results_to_be_written() -> None:
    async def scene() -> None:
        world = World(writes_slowly=10)
        world.arrive(0, 1)
        drained = asyncio.ensure_future(world.stream.drain())
        await settle()
        worker = world.fleet.start()
        await settle()
        worker.work()
        await settle()
        assert not drained.done()
        worker.work()
        await drained
        assert world.journal.finishes == {0: 1, 1: 1}
        closed = asyncio.ensure_future(world.stream.close())
        await work_off(world.fleet)
        await closed
        assert isinstance(worker.executed[-1], UnloadRun)
        assert worker.runs == {}

    play(scene)


def test_a_run_that_is_being_rebuilt_or_written_down_is_not_drained() -> None:
    async def scene() -> None:
        world = World(writes_slowly=20)
        drained = asyncio.ensure_future(world.stream.drain())
        await settle()
        assert not drained.done()
        worker = world.fleet.start()
        await drained
        world.arrive(0)
        await settle()
        worker.work()
        await asyncio.sleep(0)
        drained = asyncio.ensure_future(world.stream.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        await drained
        assert world.journal.finishes == {0: 1}

    play(scene)


@pytest.mark.parametrize("dies", [True, False])
def test_closing_outlives_the_worker(dies: bool) -> None:
    async def scene() -> None:
        world = World()
        world.fleet.start()
        world.arrive(0)
        await work_off(world.fleet)
        closed = asyncio.ensure_future(world.stream.close())
        await settle()
        if dies:
            world.fleet.kill()
        else:
            world.fleet.current.runs.clear()  # type: ignore[union-attr]
            await work_off(world.fleet)
        await closed

    play(scene)
