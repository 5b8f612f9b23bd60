"""Samples that wait for a place in the worker's batch, as clients see it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from mint.config import EngineConfig
from mint.engine.core import Sample
from mint.server.operations.kinds import KINDS
from mint.store import journal

from .inprocess import Serve, World, play

SMALL = {"engine": EngineConfig(max_decode_batch=1), "long_poll_seconds": 0.05}
"""One sequence is in the worker, the others wait."""


def request(sampler: str, seq_id: int, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}}
    return {**body, "sampling_session_id": sampler, "seq_id": seq_id, **fields}


async def poll(world: World, request_id: str) -> dict[str, Any]:
    response = await world.alice.post("retrieve_future", {"request_id": request_id})
    assert response.status_code == 408, response.text
    answer: dict[str, Any] = response.json()
    assert (answer.pop("retry_after_s"), response.headers["retry-after"]) == (0, "0")
    names = ("queue-depth", "queue_depth"), ("queue-position", "queue_position"), ("queue-eta-s", "estimated_wait_s")
    for header, field in names:
        told = math.ceil(answer[field]) if field in answer else None
        assert response.headers.get(f"x-{header}") == (str(told) if told is not None else None)
    return answer


def test_a_pending_answer_tells_the_place_in_line(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True, **SMALL) as world:
            sampler = await world.alice.sampler()
            ids = [(await world.alice.ok("asample", request(sampler, n)))["request_id"] for n in range(4)]
            assert await poll(world, ids[0]) == {"queue_state": "active"}
            last = await poll(world, ids[3])
            assert (last["queue_state"], last["queue_position"], last["queue_depth"]) == ("paused_capacity", 3, 3)
            assert last["progress"] == 0.0
            assert "number 3 of 3" in last["queue_state_reason"]
            assert "estimated_wait_s" not in last
            assert "about" not in last["queue_state_reason"]
            world.worker.work()
            await asyncio.sleep(0.01)
            assert await poll(world, ids[1]) == {"queue_state": "active"}
            last = await poll(world, ids[3])
            assert last["queue_position"] == 2
            assert last["estimated_wait_s"] > 0
            assert "about" in last["queue_state_reason"]
            world.worker.paused = False
            world.worker.work()
            for request_id in ids:
                response = await world.alice.post("retrieve_future", {"request_id": request_id})
                while response.status_code == 408:
                    response = await world.alice.post("retrieve_future", {"request_id": request_id})
                assert len(response.json()["sequences"]) == 1

    play(scene)


def test_operations_of_a_run_are_in_line_behind_those_before_them(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(**SMALL) as world:
            run = await world.alice.run()
            world.worker.paused = True
            steps = [await world.alice.ok("optim_step", {"model_id": run, "seq_id": number}) for number in (1, 2, 3)]
            for place, step in enumerate(steps, 1):
                expected = {"queue_state": "active", "queue_position": place, "queue_depth": 3}
                assert await poll(world, step["request_id"]) == expected

    play(scene)


def test_owners_take_turns(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True, **SMALL) as world:
            mine, theirs = await world.alice.sampler(), await world.bob.sampler()
            for number in range(5):
                await world.alice.ok("asample", request(mine, number, prompt={"chunks": [{"tokens": [number]}]}))
            await world.bob.ok("asample", request(theirs, 0, prompt={"chunks": [{"tokens": [9]}]}))
            drawn: list[int] = []
            while len(drawn) < 6:
                world.worker.work()
                await asyncio.sleep(0.01)
                drawn = [int(c.prompt[0]) for c in world.worker.executed if isinstance(c, Sample)]
            assert drawn == [0, 1, 9, 2, 3, 4]

    play(scene)


def test_a_full_line_takes_no_more_and_journals_nothing(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True, max_waiting_samples=3, **SMALL) as world:
            sampler = await world.alice.sampler()
            await world.alice.ok("asample", request(sampler, 0))
            responses = await asyncio.gather(*(world.alice.post("asample", request(sampler, n)) for n in range(1, 11)))
            taken = [response for response in responses if response.status_code == 200]
            refused = [response for response in responses if response.status_code == 429]
            assert (len(taken), len(refused)) == (3, 7)
            assert {response.headers["retry-after"] for response in refused} == {"1"}
            assert "3" in refused[0].json()["detail"]
            assert len(await world.services.database.transaction(journal.pending)) == 4
            # what was taken can be sent again, and others are not concerned
            assert await world.alice.ok("asample", request(sampler, 0))
            await world.bob.ok("asample", request(await world.bob.sampler(), 0))
            # the refused come again under the number that they had
            world.worker.resume()
            await asyncio.sleep(0.05)
            for number in range(11):
                await world.alice.ok("asample", request(sampler, number))
                await asyncio.sleep(0.01)
            while world.worker.times(Sample) < 12:
                await asyncio.sleep(0.01)

    play(scene)


def test_training_does_not_stand_in_line(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(max_waiting_samples=0) as world:
            run, sampler = await world.alice.run(), await world.alice.sampler()
            assert (await world.alice.post("asample", request(sampler, 0))).status_code == 429
            assert "metrics" in await world.alice.step(run, 1)

    play(scene)


def test_whatever_is_sampled_stands_in_line() -> None:
    assert {name for name, kind in KINDS.items() if kind.lines_up} == {"sample", "act", "act_batch"}
