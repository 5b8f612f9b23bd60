"""The same request again: whatever the SDK resends has the effect of one."""

from __future__ import annotations

import asyncio
from typing import Any

from mint.engine.core import CreateRun, ForwardBackward, OptimStep, Sample, SaveState

from .inprocess import Serve, play


def test_one_operation_for_one_number(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = {"model_id": run, "seq_id": 1}
            answers = await asyncio.gather(*(world.alice.ok("optim_step", body) for _ in range(10)))
            assert len({answer["request_id"] for answer in answers}) == 1
            await world.alice.retrieve(answers[0]["request_id"])
            assert await world.alice.ok("optim_step", body) == answers[0]
            passes = await asyncio.gather(*(world.alice.pass_(run, 2) for _ in range(10)))
            assert len({response.json()["request_id"] for response in passes}) == 1
            await world.alice.step(run, 3)
            assert world.worker.times(OptimStep) == 2
            assert world.worker.times(ForwardBackward) == 1

    play(scene)


def test_one_run_for_one_number_of_a_session(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            body = {"session_id": session, "model_seq_id": 0, "base_model": "base", "lora_config": {"rank": 4}}
            answers = await asyncio.gather(*(world.alice.ok("create_model", body) for _ in range(10)))
            assert len({answer["request_id"] for answer in answers}) == 1
            await world.alice.retrieve(answers[0]["request_id"])
            assert world.worker.times(CreateRun) == 1

    play(scene)


def test_one_sampler_for_one_number_of_a_session(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            samplers = [await world.alice.sampler(session, number) for number in (0, 0, 1)]
            assert samplers[0] == samplers[1] != samplers[2]

    play(scene)


def test_one_draw_for_one_number_of_a_sampler(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            body: dict[str, Any] = {"sampling_session_id": await world.alice.sampler(), "seq_id": 0, "num_samples": 3}
            body |= {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}
            answers = await asyncio.gather(*(world.alice.ok("asample", body) for _ in range(5)))
            assert answers == [answers[0]] * 5
            assert len(answers[0]["sample_sequence_ids"]) == 3
            await world.alice.retrieve(answers[0]["request_id"])
            assert world.worker.times(Sample) == 1
            # numbers have no order, and a clone's begin at 10^9 times anything
            for seq_id in (7, 10**18 + 3, 1):
                await world.alice.result("asample", {**body, "seq_id": seq_id})
            del body["seq_id"]
            for _ in range(2):
                await world.alice.result("asample", body)
            assert world.worker.times(Sample) == 6

    play(scene)


def test_one_session_for_one_idempotency_key(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            headers = {"X-Idempotency-Key": "stainless-python-retry-1"}
            mine = [await world.alice.ok("create_session", headers=headers) for _ in range(2)]
            theirs = await world.bob.ok("create_session", headers=headers)
            other = await world.alice.ok("create_session")
            assert mine[0] == mine[1]
            assert len({mine[0]["session_id"], theirs["session_id"], other["session_id"]}) == 3

    play(scene)


def test_a_number_names_one_operation(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            response = await world.alice.post("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            assert (response.status_code, response.json()["field"]) == (400, "seq_id")
            response = await world.alice.post("optim_step", {"model_id": run, "seq_id": 0})
            assert (response.status_code, response.json()["field"]) == (400, "seq_id")
            response = await world.bob.post("optim_step", {"model_id": run, "seq_id": 1})
            assert response.status_code == 403
            await world.alice.step(run, 2)
            assert world.worker.times(OptimStep) == 2

    play(scene)


def test_a_retry_of_what_is_pending_waits_for_the_same_result(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            body = {"model_id": run, "seq_id": 1, "path": "a"}
            first = await world.alice.ok("save_weights", body)
            poll = asyncio.create_task(world.alice.retrieve(first["request_id"]))
            assert await world.alice.ok("save_weights", body) == first
            world.worker.resume()
            assert (await poll)["path"] == f"tinker://{run}/weights/a"
            # the name is taken now: by this very operation
            assert await world.alice.ok("save_weights", body) == first
            assert world.worker.times(SaveState) == 1

    play(scene)
