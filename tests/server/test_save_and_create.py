"""Weights saved and sampled in one operation; live runs, listed and freed."""

from __future__ import annotations

import asyncio
from typing import Any

from mint.engine.core import CreateRun, ExportRevision, OptimStep, UnloadRun

from .inprocess import MODEL, Api, Serve, play
from .test_checkpoints import SAMPLE, folders, listed

ROUTE = "sampling_clients/save_and_create"


async def models(api: Api, **params: int) -> list[dict[str, Any]]:
    answer = (await api.send("GET", "models", params=params)).json()
    rows: list[dict[str, Any]] = answer["models"]
    return rows


def test_with_a_name_it_is_a_checkpoint_and_without_it_ends_with_its_session(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            session = run.partition(":")[0]
            named = await world.alice.result(ROUTE, {"model_id": run, "seq_id": 1, "name": "a", "ttl_seconds": 3600})
            path = f"tinker://{run}/sampler_weights/a"
            assert named == {**named, "path": path, "type": "save_and_create"}
            unnamed = await world.alice.result(ROUTE, {"model_id": run})
            assert unnamed["path"] is None
            (row,) = await listed(world.alice)
            assert (row["tinker_path"], row["checkpoint_type"], bool(row["expires_at"])) == (path, "sampler", True)
            for answer in (named, unnamed):
                sampler = answer["sampling_session_id"]
                found = (await world.alice.send("GET", f"samplers/{sampler}")).json()
                assert found == {
                    "sampler_id": sampler,
                    "base_model": MODEL,
                    **({"model_path": path} if answer["path"] else {}),
                }
                await world.alice.result("asample", {**SAMPLE, "sampling_session_id": sampler})
            assert named["sampling_session_id"] != unnamed["sampling_session_id"]
            # the client's own numbers, from 0 on, are free
            assert await world.alice.sampler(session, 0) == f"{session}:sample:0"
            assert len(folders(world)) == 2
            await world.alice.post(f"sessions/{session}/finish")
            while len(folders(world)) > 1:
                await asyncio.sleep(0.01)
            assert [row["tinker_path"] for row in await listed(world.alice)] == [path]

    play(scene)


def test_a_retry_saves_once_and_a_taken_name_is_refused(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = {"model_id": run, "seq_id": 1, "name": "a"}
            first = await world.alice.result(ROUTE, body)
            assert await world.alice.result(ROUTE, body) == first
            assert world.worker.times(ExportRevision) == 1
            for wrong, code, field in (
                ({**body, "seq_id": 2}, 400, "path"),
                ({"model_id": run, "seq_id": -1}, 422, "seq_id"),
                ({**body, "seq_id": 3, "name": "../a"}, 422, "name"),
            ):
                response = await world.alice.post(ROUTE, wrong)
                assert (response.status_code, response.json()["field"]) == (code, field)
            await world.alice.step(run, 4)

    play(scene)


def test_live_runs_are_those_of_open_sessions(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            first, second = await world.alice.run(session, 0), await world.alice.run(session, 1)
            other = await world.alice.run()
            await world.bob.run()
            rows = await models(world.alice)
            assert [row["model_id"] for row in rows] == [other, second, first]
            assert rows[0]["loaded"]
            assert (rows[0]["lora_rank"], rows[0]["base_model"]) == (4, MODEL)
            assert [row["model_id"] for row in await models(world.alice, limit=1, offset=1)] == [second]
            await world.alice.post(f"sessions/{session}/finish")
            assert [row["model_id"] for row in await models(world.alice)] == [other]

    play(scene)


def test_a_freed_run_goes_on_where_it_was(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            assert (await world.alice.send("DELETE", f"models/{run}")).is_success
            while (await models(world.alice))[0]["loaded"]:
                await asyncio.sleep(0.01)
            assert world.worker.times(UnloadRun) == 1
            # the worker tells how many commands have made its state
            assert (await world.alice.step(run, 2))["metrics"] == {"step": 2.0}
            assert (world.worker.times(CreateRun), world.worker.times(OptimStep)) == (2, 3)
            assert (await models(world.alice))[0]["loaded"]
            assert (await world.alice.send("DELETE", "models/nobody")).status_code == 404

    play(scene)
