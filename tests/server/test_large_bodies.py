"""Large bodies: read and planned where they hold up nobody, and otherwise treated as any other."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mint.engine.core import TrainStep
from mint.server.operations import planning
from mint.server.operations.train_step import TrainStepKind
from mint.wire.documents import read_object

from .inprocess import Serve, World, play
from .test_restarts import killed, kinds
from .test_train_step import content, datum, request

PADDING = "x" * (planning.LARGE_BODY + 1)


def large(run: str, seq_id: int, **fields: Any) -> dict[str, Any]:
    return request(run, seq_id, padding=PADDING, **fields)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Where train steps are read and planned, by the name of the thread."""
    seen: dict[str, list[str]] = {"parse": [], "plan": []}

    def noted(name: str) -> Any:
        original = getattr(TrainStepKind, name)

        def method(self: TrainStepKind, *args: Any) -> Any:
            seen[name].append(threading.current_thread().name.partition("_")[0])
            return original(self, *args)

        return method

    for name in seen:
        monkeypatch.setattr(TrainStepKind, name, noted(name))
    return seen


def steps(world: World) -> list[TrainStep]:
    return [command for command in world.worker.executed if isinstance(command, TrainStep)]


def test_large_ones_have_a_thread_and_small_ones_one_transaction(serve: Serve, threads: dict[str, list[str]]) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.result("train_step", request(run, 1))
            assert threads == {"parse": ["MainThread"], "plan": ["database"]}
            await world.alice.result("train_step", large(run, 2))
            assert threads == {"parse": ["MainThread", "planning"], "plan": ["database", "planning"]}
            first, second = steps(world)
            assert first.forward_backward.data[0].tokens.tolist() == second.forward_backward.data[0].tokens.tolist()

    play(scene)


@pytest.fixture
def _eager_threads() -> Iterator[None]:
    """So that many get their turn in little time, also where the machine is busy."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_eager_threads")
def test_others_have_their_turn_while_json_is_read() -> None:
    """The parser holds the interpreter's lock, and would to its end."""
    body = json.dumps({"data": [{"tokens": [7] * 1000} for _ in range(2000)]}).encode()
    turns, ended = [0], threading.Event()

    def count() -> None:
        while not ended.wait(0.0001):
            turns[0] += 1

    counting = threading.Thread(target=count)
    counting.start()
    before = turns[0]
    read_object(body)
    during = turns[0] - before
    ended.set()
    counting.join()
    assert during > 30


def test_a_large_one_under_one_number_is_one_operation(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            answers = await asyncio.gather(*(world.alice.ok("train_step", large(run, 1)) for _ in range(4)))
            assert len({answer["request_id"] for answer in answers}) == 1
            assert await world.alice.ok("train_step", large(run, 1)) == answers[0]
            await world.alice.retrieve(answers[0]["request_id"])
            assert len(steps(world)) == 1
            response = await world.bob.post("train_step", large(run, 1))
            assert response.status_code == 403

    play(scene)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"forward_backward_input": content(datum(), datum([5, 100, 7]))}, "data[1].model_input"),
        ({"adam_params": {"type": "dimuon"}}, "adam_params.type"),
        ({"forward_backward_input": 7}, "forward_backward_input"),
        ({"other": "\ud800"}, "body"),
    ],
)
def test_a_large_one_that_is_refused_has_used_its_number(serve: Serve, fields: dict[str, Any], field: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = json.dumps(large(run, 1, **fields)).encode()
            headers = {"Content-Type": "application/json"}
            response = await world.alice.send("POST", "train_step", content=body, headers=headers)
            assert (response.status_code, response.json()["field"]) == (400, field), response.text
            await world.alice.step(run, 2)
            assert kinds(world, run)[1:] == ["OptimStep"]

    play(scene)


def test_what_is_gone_when_it_has_been_planned_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            planned, go_on = threading.Event(), threading.Event()
            original = TrainStepKind.plan

            def slow(self: TrainStepKind, *args: Any) -> TrainStep:
                planned.set()
                assert go_on.wait(10)
                return original(self, *args)

            monkeypatch.setattr(TrainStepKind, "plan", slow)
            sent = asyncio.create_task(world.alice.post("train_step", large(run, 1)))
            await asyncio.to_thread(planned.wait, 10)
            # while it is being planned, others are answered
            assert (await world.alice.post(f"sessions/{session}/finish")).status_code == 204
            go_on.set()
            assert (await sent).status_code == 410
            assert not steps(world)

    play(scene)


def test_a_history_is_planned_in_the_thread(serve: Serve, tmp_path: Path, threads: dict[str, list[str]]) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for number in (1, 2):
                await world.alice.result("train_step", request(run, number))
            world.worker.paused = True
            pending = await world.alice.ok("train_step", large(run, 3))
            folder = killed(tmp_path / "data")
        threads["plan"].clear()
        async with serve(folder) as world:
            await world.alice.retrieve(pending["request_id"])
            assert kinds(world, run) == ["CreateRun", *["TrainStep"] * 3]
            assert threads["plan"] == ["planning"] * 3

    play(scene)
