"""Samples that nobody waits for any more: cancelled, of a finished session, of a client that has gone."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from mint.config import EngineConfig
from mint.engine.core import Sample
from mint.store import journal

from .inprocess import MODEL, Serve, World, play

SMALL = EngineConfig(max_decode_batch=1)


async def draw(world: World, sampler: str, seq_id: int) -> str:
    """Submit a sample; its request id."""
    body: dict[str, Any] = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}}
    answer = await world.alice.ok("asample", {**body, "sampling_session_id": sampler, "seq_id": seq_id})
    await asyncio.sleep(0.01)
    return str(answer["request_id"])


async def cancel(world: World, request_id: str) -> None:
    response = await world.alice.post("cancel_future", {"request_id": request_id})
    assert (response.status_code, response.content) == (204, b"")


async def fails(world: World, request_id: str, why: str) -> None:
    failed = await world.alice.retrieve(request_id)
    assert failed["category"] == "user"
    assert why in failed["error"]


def test_a_cancelled_sample_leaves_the_worker_at_once(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True, engine=SMALL) as world:
            sampler = await world.alice.sampler()
            running, waiting, other = [await draw(world, sampler, number) for number in range(3)]
            poll = asyncio.create_task(world.alice.retrieve(running))
            await asyncio.sleep(0.01)
            assert len(world.worker.backlog) == 1
            for _ in range(2):
                await cancel(world, waiting)
                await cancel(world, running)
            assert (await poll)["category"] == "user"
            await fails(world, running, "cancelled")
            await fails(world, waiting, "cancelled")
            assert len(world.worker.cancelled) == 1
            world.worker.resume()
            assert len((await world.alice.retrieve(other))["sequences"]) == 1
            assert world.worker.times(Sample) == 1
            # sent again, it is still the one that was cancelled
            assert await draw(world, sampler, 0) == running
            assert world.worker.times(Sample) == 1

    play(scene)


def test_what_has_ended_keeps_its_result(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            request_id = await draw(world, await world.alice.sampler(), 0)
            result = await world.alice.retrieve(request_id)
            await cancel(world, request_id)
            assert await world.alice.retrieve(request_id) == result

    play(scene)


def test_only_its_owner_cancels_a_sample_and_nobody_a_step(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True) as world:
            request_id = await draw(world, await world.alice.sampler(), 0)
            response = await world.bob.post("cancel_future", {"request_id": request_id})
            assert (response.status_code, response.json()["field"]) == (403, "request_id")
            response = await world.alice.post("cancel_future", {"request_id": "req-unknown"})
            assert (response.status_code, response.json()["field"]) == (410, "request_id")
            world.worker.resume()
            assert "sequences" in await world.alice.retrieve(request_id)
            run = await world.alice.run()
            step = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            response = await world.alice.post("cancel_future", {"request_id": step["request_id"]})
            assert (response.status_code, response.json()["field"]) == (400, "request_id")
            assert "metrics" in await world.alice.retrieve(step["request_id"])

    play(scene)


def test_a_cancelled_sample_is_not_taken_up_by_the_next_process(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(paused=True, engine=SMALL) as world:
            sampler = await world.alice.sampler()
            cancelled = [await draw(world, sampler, number) for number in range(2)]
            kept = await draw(world, sampler, 2)
            for request_id in cancelled:
                await cancel(world, request_id)
            folder = Path(shutil.copytree(tmp_path / "data", tmp_path / "killed"))
        async with serve(folder) as world:
            assert "sequences" in await world.alice.retrieve(kept)
            for request_id in cancelled:
                await fails(world, request_id, "cancelled")
            assert world.worker.times(Sample) == 1

    play(scene)


def test_a_sample_of_a_model_that_is_not_served_now_can_be_cancelled(serve: Serve, tmp_path: Path) -> None:
    from mint.config import ModelSource

    async def scene() -> None:
        async with serve(paused=True) as world:
            request_id = await draw(world, await world.alice.sampler(), 0)
            folder = Path(shutil.copytree(tmp_path / "data", tmp_path / "killed"))
        async with serve(folder, models=(ModelSource("other", "/nowhere"),)) as world:
            await cancel(world, request_id)
            await fails(world, request_id, "cancelled")
            assert await world.services.database.transaction(journal.pending) == []

    play(scene)


def test_the_end_of_a_session_is_that_of_its_samples(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True, engine=SMALL) as world:
            session, other = await world.alice.session(), await world.alice.sampler()
            sampler = await world.alice.sampler(session)
            mine = [await draw(world, sampler, number) for number in range(3)]
            theirs = await draw(world, other, 0)
            assert (await world.alice.post(f"sessions/{session}/finish", {})).status_code == 204
            for request_id in mine:
                await fails(world, request_id, "was finished")
            world.worker.resume()
            assert "sequences" in await world.alice.retrieve(theirs)
            assert world.worker.times(Sample) == 1

    play(scene)


@pytest.mark.parametrize("sign", ["heartbeat", "poll", "sample", "none"])
def test_a_client_that_has_gone_frees_its_work(serve: Serve, sign: str) -> None:
    async def scene() -> None:
        async with serve(paused=True, engine=SMALL, session_timeout_seconds=0.8, long_poll_seconds=0.02) as world:
            session = await world.alice.session()
            sampler = await world.alice.sampler(session)
            ids = [await draw(world, sampler, number) for number in range(2)]
            for number in range(8):
                await asyncio.sleep(0.15)
                if sign == "heartbeat":
                    await world.alice.ok("session_heartbeat", {"session_id": session})
                elif sign == "poll":
                    await world.alice.post("retrieve_future", {"request_id": ids[1]})
                elif sign == "sample":
                    await draw(world, sampler, 10 + number)
            if sign == "none":
                for request_id in ids:
                    await fails(world, request_id, "nothing was heard")
                assert world.worker.backlog == []
            else:
                assert set(ids) <= set(world.services.samples.of_client(session))
            # a client that comes back goes on
            await world.alice.ok("session_heartbeat", {"session_id": session})
            last = await draw(world, sampler, 2)
            world.worker.resume()
            await asyncio.sleep(0.1)
            assert "sequences" in await world.alice.retrieve(last)

    play(scene)


@pytest.mark.parametrize("polled", [True, False])
def test_a_sample_without_a_session_lives_while_it_is_asked_for(serve: Serve, polled: bool) -> None:
    async def scene() -> None:
        async with serve(paused=True, session_timeout_seconds=0.8, long_poll_seconds=0.02) as world:
            body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}, "base_model": MODEL}
            request_id = (await world.alice.ok("asample", body))["request_id"]
            for _ in range(8):
                await asyncio.sleep(0.15)
                if polled:
                    await world.alice.post("retrieve_future", {"request_id": request_id})
            assert len(world.worker.backlog) == polled
            if not polled:
                await fails(world, request_id, "nothing was heard")

    play(scene)


def test_a_restart_is_no_absence_of_the_client(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve(paused=True) as world:
            request_id = await draw(world, await world.alice.sampler(), 0)
            folder = Path(shutil.copytree(tmp_path / "data", tmp_path / "killed"))
        await asyncio.sleep(0.5)
        async with serve(folder, paused=True, session_timeout_seconds=0.4) as world:
            await world.alice.session()  # the server has started
            await asyncio.sleep(0.2)
            assert len(world.worker.backlog) == 1
            await asyncio.sleep(0.6)
            await fails(world, request_id, "nothing was heard")

    play(scene)
