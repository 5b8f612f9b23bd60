"""What the last process left unfinished, where this one cannot simply carry it out."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import perf_counter

import pytest

from mint.server.operations.training import OptimizerStep

from .inprocess import MODEL, Serve, play
from .test_restarts import killed


def test_what_can_no_longer_be_done_fails_and_is_passed_over(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            world.worker.paused = True
            path = f"tinker://{run}/weights/a"
            first = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 2})
            loads = [
                await world.alice.ok("load_weights", {"model_id": run, "seq_id": number, "path": path})
                for number in (3, 4, 5)
            ]
            last = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 6})
            folder = killed(tmp_path / "data")
        shutil.rmtree(folder / "checkpoints")
        async with serve(folder) as world:
            for future in (first, last):
                assert "metrics" in await world.alice.retrieve(future["request_id"])
            for future in loads:
                assert "are gone" in (await world.alice.retrieve(future["request_id"]))["error"]

    play(scene)


def test_a_model_that_is_served_no_more_is_named(serve: Serve) -> None:
    from mint.config import ModelSource

    async def scene() -> None:
        async with serve() as world:
            run, sampler = await world.alice.run(), await world.alice.sampler()
        async with serve(models=(ModelSource("another", "/"),)) as world:
            body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}
            for path, request in (
                ("optim_step", {"model_id": run, "seq_id": 1}),
                ("save_weights", {"model_id": run, "seq_id": 2, "path": "a"}),
                ("get_info", {"model_id": run}),
                ("asample", {**body, "sampling_session_id": sampler}),
            ):
                response = await world.alice.post(path, request)
                assert (response.status_code, response.json()["field"]) == (400, "base_model"), path
                assert "another" in response.json()["detail"]
        async with serve() as world:
            await world.alice.step(run, 3)

    play(scene)


def test_what_is_pending_for_a_model_waits_until_that_is_served_again(serve: Serve, tmp_path: Path) -> None:
    from mint.config import ModelSource

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            folder = killed(tmp_path / "data")
        async with serve(folder, models=(ModelSource("another", "/"),), long_poll_seconds=0.1) as world:
            await world.services.started.wait()  # it too is waited for as long as for a result, and no longer
            started = perf_counter()
            response = await world.alice.post("retrieve_future", {"request_id": future["request_id"]})
            assert perf_counter() - started > 0.09
            assert (response.status_code, response.json()["queue_state"]) == (408, "paused_capacity")
            assert MODEL in response.json()["queue_state_reason"]
        async with serve(folder) as world:
            assert await world.alice.retrieve(future["request_id"]) == {"metrics": {"step": 1.0}}

    play(scene)


def test_one_that_cannot_be_read_any_more_does_not_keep_the_server_from_starting(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            folder = killed(tmp_path / "data")

        def fail(*_: object) -> None:
            raise ValueError("a fault of ours")

        with monkeypatch.context() as patch:
            patch.setattr(OptimizerStep, "plan", fail)
            async with serve(folder) as world:
                assert (await world.alice.retrieve(future["request_id"]))["category"] == "server"
        async with serve(folder) as world:
            assert await world.alice.step(run, 2) == {"metrics": {"step": 1.0}}

    play(scene)
