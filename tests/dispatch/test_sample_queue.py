"""Samples in line: whose turn it is, how many are with the worker, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mint.dispatch import rate
from mint.dispatch.sample_queue import SampleQueue, SampleTicket, Wait
from mint.engine.core import Command, Sample, Sampled, SamplingParams
from mint.errors import MintError, OperationCancelledError

from .fakes import MODEL, FakeFleet, play, settle, work_off


class Line:
    """A queue, and what has come of its tickets, by their names."""

    def __init__(self, window: int = 2, max_waiting: int = 100, deadly: Callable[[Command], bool] = lambda _: False):
        self.fleet = FakeFleet(deadly=deadly)
        self.queue = SampleQueue(self.fleet, window, max_waiting)  # type: ignore[arg-type]
        self.outcomes: dict[str, list[Any]] = {}
        self.writes_slowly = False
        self._names: dict[int, str] = {}

    def add(self, name: str, owner: str = "alice", num_samples: int = 1, session: str | None = None) -> None:
        async def finish(outcome: Any) -> None:
            if self.writes_slowly:
                await asyncio.sleep(0.05)
            self.outcomes[name].append(outcome)

        seed = len(self._names)
        self._names[seed] = name
        self.outcomes[name] = []
        command = Sample(None, np.array([1], np.int32), num_samples, SamplingParams(max_tokens=1, seed=seed))
        self.queue.add(SampleTicket(name, seed, MODEL, command, finish, owner, session))

    @property
    def at_worker(self) -> list[str]:
        assert self.fleet.current is not None
        return self.named(self.fleet.current.backlog)

    def named(self, commands: list[Command]) -> list[str]:
        return [self._names[command.params.seed] for command in commands if isinstance(command, Sample)]

    @property
    def done(self) -> list[str]:
        return [name for name, mine in self.outcomes.items() if mine]


def test_the_worker_has_a_window_and_the_rest_waits() -> None:
    async def scene() -> None:
        line = Line(window=3)
        worker = line.fleet.start()
        for name in "abcdef":
            line.add(name, num_samples=2)
        await settle()
        assert line.at_worker == ["a", "b"]
        assert line.queue.wait("b") is None
        assert [line.queue.wait(name).position for name in "cdef"] == [1, 2, 3, 4]  # type: ignore[union-attr]
        worker.work()
        await settle()
        assert line.at_worker == ["b", "c"]
        await work_off(line.fleet)
        assert line.named(worker.executed) == list("abcdef")
        assert all(isinstance(mine[0], Sampled) and len(mine) == 1 for mine in line.outcomes.values())
        assert line.queue.wait("f") is None

    play(scene)


def test_a_request_larger_than_the_window_goes_too() -> None:
    async def scene() -> None:
        line = Line(window=2)
        line.fleet.start()
        line.add("a")
        line.add("huge", num_samples=50)
        line.add("b")
        await settle()
        assert line.at_worker == ["a", "huge"]
        await work_off(line.fleet)
        assert line.done == ["a", "huge", "b"]

    play(scene)


def test_owners_take_turns_and_positions_say_so() -> None:
    async def scene() -> None:
        line = Line(window=1)
        worker = line.fleet.start()
        line.add("first")
        for number in range(4):
            line.add(f"a{number}", "alice")
        line.add("b0", "bob")
        line.add("c0", "carol")
        line.add("c1", "carol")
        expected = ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]
        waits = {name: line.queue.wait(name) for name in expected}
        assert [wait.position for wait in waits.values() if wait] == [1, 2, 3, 4, 5, 6, 7]
        assert {wait.depth for wait in waits.values() if wait} == {7}
        await settle()
        await work_off(line.fleet)
        assert line.named(worker.executed) == ["first", *expected]

    play(scene)


def test_a_latecomer_passes_the_crowd_of_another() -> None:
    async def scene() -> None:
        line = Line(window=2)
        worker = line.fleet.start()
        for number in range(50):
            line.add(f"a{number}", "alice")
        await settle()
        for _ in range(10):
            worker.work()
            await settle()
        line.add("b", "bob")
        await work_off(line.fleet)
        assert line.named(worker.executed).index("b") <= 10 + 2 + 1

    play(scene)


def test_there_is_no_estimate_before_something_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        now = [100.0]
        monkeypatch.setattr(rate, "monotonic", lambda: now[0])
        line = Line(window=1)
        worker = line.fleet.start()
        line.add("idle")  # alone, and so slow that it would spoil the rate
        await settle()
        now[0] += 50
        worker.work()
        await settle()
        for name in "abcdefgh":
            line.add(name)
        await settle()
        assert line.queue.wait("h") == Wait(7, 7, None)
        for _ in range(4):
            now[0] += 0.5
            worker.work()
            await settle()
        assert line.queue.wait("h") == Wait(3, 3, 1.5)  # two a second
        now[0] += 61
        assert line.queue.wait("h") == Wait(3, 3, None)

    play(scene)


def test_too_many_of_one_owner_find_no_room() -> None:
    async def scene() -> None:
        line = Line(window=1, max_waiting=2)
        line.fleet.start()
        for name in "ab":
            line.add(name)
        with line.queue.arriving("alice") as first, line.queue.arriving("alice") as second:
            assert (first, second) == (True, False)
            with line.queue.arriving("bob") as other:
                assert other
        line.add("c")
        with line.queue.arriving("alice") as more:
            assert not more
        await work_off(line.fleet)
        with line.queue.arriving("alice") as again:
            assert again

    play(scene)


def test_a_cancelled_request_leaves_wherever_it_is() -> None:
    async def scene() -> None:
        line = Line(window=1)
        worker = line.fleet.start()
        for name in "abc":
            line.add(name)
        await settle()
        error = OperationCancelledError("no")
        await line.queue.cancel(["a", "c", "unknown"], error)
        assert line.outcomes == {"a": [error], "b": [], "c": [error]}
        await settle()
        assert line.named(worker.cancelled) == ["a"]
        assert line.at_worker == ["b"]
        await work_off(line.fleet)
        await line.queue.cancel(["a", "b"], error)
        assert [len(mine) for mine in line.outcomes.values()] == [1, 1, 1]
        assert isinstance(line.outcomes["b"][0], Sampled)

    play(scene)


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_on_the_heels_of_the_result_finishes_once(turns: int) -> None:
    async def scene() -> None:
        line = Line(window=1)
        worker = line.fleet.start()
        line.writes_slowly = True
        line.add("a")
        line.add("b")
        await settle()
        worker.work()
        for _ in range(turns):
            await asyncio.sleep(0)
        await line.queue.cancel(["a"], OperationCancelledError("no"))
        await asyncio.sleep(0.1)
        await work_off(line.fleet)
        await asyncio.sleep(0.1)
        assert [len(mine) for mine in line.outcomes.values()] == [1, 1]

    play(scene)


def test_a_request_cancelled_before_its_worker_is_there_frees_its_place() -> None:
    async def scene() -> None:
        line = Line(window=1)
        line.add("a")
        await line.queue.cancel(["a"], OperationCancelledError("no"))
        line.add("b")
        line.fleet.start()
        await work_off(line.fleet)
        assert line.done == ["a", "b"]

    play(scene)


def test_the_samples_of_a_session_can_be_told() -> None:
    async def scene() -> None:
        line = Line(window=1)
        line.fleet.start()
        for name, session in (("a", "s"), ("b", "s"), ("c", "t"), ("d", None)):
            line.add(name, session=session)
        assert line.queue.clients() == {"s", "t"}
        assert sorted(line.queue.of_client("s")) == ["a", "b"]
        await work_off(line.fleet)
        assert line.queue.clients() == set()

    play(scene)


def test_a_sample_outlives_workers_up_to_a_limit() -> None:
    async def scene(deaths: int) -> list[Any]:
        line = Line()
        line.add("a")
        for _ in range(deaths):
            line.fleet.start()
            await settle()
            line.fleet.kill()
        line.fleet.start()
        await work_off(line.fleet)
        return line.outcomes["a"]

    (outcome,) = asyncio.run(scene(2))
    assert isinstance(outcome, Sampled)
    (outcome,) = asyncio.run(scene(3))
    assert isinstance(outcome, MintError)
    assert outcome.category == "server"


def test_samples_survive_a_killer_among_them() -> None:
    async def scene() -> None:
        line = Line(window=4, deadly=lambda command: isinstance(command, Sample) and command.params.seed == 3)
        for number in range(8):
            line.add(str(number))
        while len(line.done) < 8:
            if line.fleet.current is None:
                line.fleet.start()
            await work_off(line.fleet)
        assert [isinstance(mine[0], Sampled) for mine in line.outcomes.values()] == [n != 3 for n in range(8)]

    play(scene)


def test_close_writes_what_has_come_and_leaves_the_rest() -> None:
    async def scene() -> None:
        line = Line(window=2)
        worker = line.fleet.start()
        line.writes_slowly = True
        for name in "abc":
            line.add(name)
        await settle()
        worker.work()
        await settle()
        await line.queue.close()
        assert line.done == ["a"]
        await settle()
        assert worker.backlog == []

    play(scene)


def test_a_request_of_many_samples_leaves_room_for_others() -> None:
    async def scene() -> None:
        line = Line(window=64)
        line.fleet.start()
        for name in "abc":
            line.add(name, num_samples=1000)
        line.add("one", owner="bob")
        await settle()
        assert line.at_worker == ["a", "b", "c", "one"]

    play(scene)


def test_requests_that_were_given_up_do_not_make_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        line = Line(window=1)
        line.fleet.start()
        for name in "abcdef":
            line.add(name)
        await settle()
        await line.queue.cancel("abcd", OperationCancelledError("given up"))
        await settle()
        wait = line.queue.wait("f")
        assert wait is not None
        assert wait.seconds is None

    play(scene)
