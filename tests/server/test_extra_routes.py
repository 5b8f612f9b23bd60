"""MinT's routes beside the SDK's: live runs, saving and sampling in one, convenience forms."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mint.engine.core import CreateRun, ExportRevision, Sample, UnloadRun

from .inprocess import MODEL, Api, Serve, play

PROMPT = {"chunks": [{"tokens": [5, 6, 7]}]}


async def models(api: Api) -> list[dict[str, Any]]:
    return (await api.send("GET", "models")).json()["models"]


# ---------------------------------------------------------------- live runs


def test_live_runs_are_listed_newest_first(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            runs = [await world.alice.run(session, number) for number in range(2)]
            await world.bob.run()
            found = await models(world.alice)
            assert [each["model_id"] for each in found] == runs[::-1]
            assert {key: found[0][key] for key in ("base_model", "is_lora", "lora_rank", "session_id")} == {
                "base_model": MODEL,
                "is_lora": True,
                "lora_rank": 4,
                "session_id": session,
            }
            await world.alice.post(f"sessions/{session}/finish")
            assert await models(world.alice) == []

    play(scene)


def test_a_freed_run_leaves_the_engine_and_its_checkpoints_stay(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            saved = await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            assert (await world.alice.send("DELETE", f"models/{run}")).status_code == 204
            while not world.worker.times(UnloadRun):
                await asyncio.sleep(0.01)
            assert await models(world.alice) == []
            refused = await world.alice.post("optim_step", {"model_id": run, "seq_id": 2})
            assert (refused.status_code, "was freed" in refused.json()["detail"]) == (410, True)
            again = await world.alice.send("DELETE", f"models/{run}")
            assert again.status_code == 410
            session = await world.alice.session()
            body = {"session_id": session, "model_seq_id": 0, "path": saved["path"]}
            assert (await world.alice.result("load_weights", body))["model_id"] == f"{session}:train:0"

    play(scene)


def test_a_run_with_work_is_not_freed(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            refused = await world.alice.send("DELETE", f"models/{run}")
            assert (refused.status_code, refused.json()["field"]) == (400, "model_id")
            assert "1 operations" in refused.json()["detail"]
            assert [each["model_id"] for each in await models(world.alice)] == [run]
            unknown = await world.alice.send("DELETE", "models/unknown")
            assert unknown.status_code == 404

    play(scene)


# ---------------------------------------------------------------- save and create


@pytest.mark.parametrize("numbered", [True, False])
def test_a_revision_and_its_sampler_in_one(serve: Serve, numbered: bool) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = {"model_id": run, "name": "a", **({"seq_id": 1} if numbered else {})}
            answer = await world.alice.result("sampling_clients/save_and_create", body)
            path = f"tinker://{run}/sampler_weights/a"
            assert answer["path"] == path
            found = (await world.alice.send("GET", f"samplers/{answer['sampling_session_id']}")).json()
            assert (found["base_model"], found["model_path"]) == (MODEL, path)
            other = {"model_id": run, **({"seq_id": 2} if numbered else {})}
            unnamed = await world.alice.result("sampling_clients/save_and_create", other)
            assert "path" not in unnamed
            assert unnamed["sampling_session_id"] != answer["sampling_session_id"]
            for sampler in (answer, unnamed):
                session = sampler["sampling_session_id"]
                request = {"sampling_session_id": session, "seq_id": 0, "prompt": PROMPT}
                sampled = await world.alice.result("asample", {**request, "sampling_params": {"max_tokens": 1}})
                assert len(sampled["sequences"]) == 1
            exported = [each.key for each in world.worker.executed if isinstance(each, ExportRevision)]
            sampled_from = [each.revision.key for each in world.worker.executed if isinstance(each, Sample)]
            assert sampled_from == exported
            taken = await world.alice.post("sampling_clients/save_and_create", {**body, "seq_id": 3})
            assert (taken.status_code, taken.json()["field"]) == (400, "name")

    play(scene)


# ---------------------------------------------------------------- convenience


def test_log_probabilities_of_a_prompt(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            answer = await world.alice.result("compute_logprobs", {"base_model": MODEL, "prompt": PROMPT})
            assert answer["prompt_logprobs"][0] is None
            assert len(answer["prompt_logprobs"]) == 3
            refused = await world.alice.post("compute_logprobs", {"prompt": PROMPT})
            assert (refused.status_code, refused.json()["field"]) == (400, "base_model")
            refused = await world.alice.post("compute_logprobs", [1])
            assert (refused.status_code, refused.json()["field"]) == (400, "body")

    play(scene)


def test_a_run_from_a_checkpoint(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            body = {"session_id": session, "model_seq_id": 1, "path": path}
            made = await world.alice.result("create_model_from_state", body)
            assert made["model_id"] == f"{session}:train:1"
            assert world.worker.times(CreateRun) == 1

    play(scene)
