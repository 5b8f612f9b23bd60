"""What a server forgets after a while: answers, sessions and what recovery would have needed; never checkpoints."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mint.engine.core import OptimStep, UnloadRun
from mint.server.forgetting import forget
from mint.store import repository
from mint.store.schema import RunSnapshot

from .inprocess import Serve, World, play


def hurry(world: World) -> None:
    """From now on nothing is kept."""
    world.services.config = replace(world.services.config, answers_kept_seconds=-1.0, sessions_kept_seconds=-1.0)


def test_old_answers_go_and_the_run_goes_on(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(snapshot_seconds=0.0) as world:
            run = await world.alice.run()
            last = 0
            while (snapshot := await snapshot_of(world, run)) is None or snapshot.seq_id < 2:
                last += 1
                await world.alice.step(run, last)
                await asyncio.sleep(0.02)
            world.services.config = replace(world.services.config, answers_kept_seconds=-1.0)
            await forget(world.services)
            # a retry of what was forgotten is not carried out again
            late = await world.alice.result("optim_step", {"model_id": run, "seq_id": 1})
            assert "too late" in late["error"]
            assert await world.alice.step(run, last + 1) == {"metrics": {"step": last + 1.0}}
            assert world.worker.times(OptimStep) == last + 1

    play(scene)


async def snapshot_of(world: World, run: str) -> RunSnapshot | None:
    return await world.services.database.transaction(lambda c: repository.find(c, RunSnapshot, run_id=run))


def test_a_finished_session_leaves_its_checkpoints(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(snapshot_seconds=0.0) as world:
            run = await world.alice.run()
            session = run.partition(":")[0]
            await world.alice.step(run, 1)
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 2, "path": "a"}))["path"]
            await world.alice.post(f"sessions/{session}/finish")
            while world.services.dispatcher.has(run):
                await asyncio.sleep(0.01)
            hurry(world)
            await forget(world.services)
            assert not list(world.services.config.snapshot_dir.glob("*"))
            listed = (await world.alice.send("GET", "checkpoints")).json()
            assert [each["tinker_path"] for each in listed["checkpoints"]] == [path]
            assert listed["cursor"]["total_count"] == 1
            runs = (await world.alice.send("GET", "training_runs")).json()
            assert [(each["training_run_id"], each["corrupted"]) for each in runs["training_runs"]] == [(run, False)]
            # and it can still be trained on
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "path": path}
            assert (await world.alice.result("load_weights", body))["path"] == path

    play(scene)


def test_a_client_that_has_gone_leaves_the_worker_and_may_come_back(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(session_timeout_seconds=0.2) as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            while not world.worker.times(UnloadRun):
                await asyncio.sleep(0.01)
            assert world.worker.runs == {}
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}

    play(scene)


def test_a_session_that_nobody_comes_back_to_goes_altogether(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(session_timeout_seconds=0.2) as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            session = run.partition(":")[0]
            while world.services.dispatcher.has(run):
                await asyncio.sleep(0.01)
            hurry(world)
            await forget(world.services)
            assert (await world.alice.post("session_heartbeat", {"session_id": session})).status_code == 404
            assert (await world.alice.send("GET", "sessions")).json() == {"sessions": []}
            assert (await world.alice.post("optim_step", {"model_id": run, "seq_id": 2})).status_code == 404

    play(scene)
