"""What a server forgets after a while: answers, sessions and what recovery would have needed; never checkpoints."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mint.engine.core import OptimStep, ReverseKL, UnloadRun
from mint.server.forgetting import forget
from mint.store import repository
from mint.store.schema import RunSnapshot

from .inprocess import Serve, World, play
from .test_checkpoints import saved
from .test_custom_loss import custom_pass, passes, uploaded
from .test_unnumbered import DATUM, reverse_kl


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


def test_a_forgotten_operation_without_a_number_is_not_carried_out_again(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(snapshot_seconds=0.0) as world:
            run = await world.alice.run()
            await world.alice.retrieve(await reverse_kl(world.alice, run, key="one"))
            last = 0
            while (snapshot := await snapshot_of(world, run)) is None or snapshot.seq_id < 3:
                last += 1
                await world.alice.step(run, last)
                await asyncio.sleep(0.02)
            world.services.config = replace(world.services.config, answers_kept_seconds=-1.0)
            await forget(world.services)
            body = {"model_id": run, "data": [DATUM], "seq_id": None}
            headers = {"X-Idempotency-Key": "one"}
            again = await world.alice.post("mint/forward_backward_reverse_kl", body, headers=headers)
            assert (again.status_code, again.json()["field"]) == (410, "X-Idempotency-Key")
            assert await world.alice.step(run, last + 1) == {"metrics": {"step": last + 2.0}}
            assert world.worker.times(ReverseKL) == 1

    play(scene)


def test_a_copy_whose_answer_is_forgotten_is_not_made_again(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            body = {"source_path": path, "destination_project_id": "p"}
            headers = {"X-Idempotency-Key": "one"}
            copied = await world.alice.ok("copy_weights", body, headers=headers)
            world.services.config = replace(world.services.config, answers_kept_seconds=-1.0)
            await forget(world.services)
            again = await world.alice.post("copy_weights", body, headers=headers)
            assert (again.status_code, again.json()["field"]) == (410, "X-Idempotency-Key")
            listed = (await world.alice.send("GET", "checkpoints")).json()
            assert [each["tinker_path"] for each in listed["checkpoints"]] == [copied["tinker_path"], path]

    play(scene)


def test_a_run_outlives_the_session_that_has_its_loss(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(session_timeout_seconds=0.2) as world:
            other = await world.alice.session()
            loss_id = await uploaded(world.alice, other)
            run = await world.alice.run()
            future = (await custom_pass(world.alice, run, 1, loss_id)).json()
            await world.alice.retrieve(future["request_id"])
            await world.alice.post(f"sessions/{other}/finish")
            await asyncio.sleep(0.05)
            world.services.config = replace(world.services.config, answers_kept_seconds=-1.0)
            await forget(world.services)
        async with serve() as world:
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}
            assert [each.loss_graph is not None for each in passes(world)] == [True]
            refused = await custom_pass(world.alice, run, 3, loss_id)
            assert (refused.status_code, refused.json()["field"]) == (404, "loss_fn_config.loss_id")

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
