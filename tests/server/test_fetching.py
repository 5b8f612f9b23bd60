"""Operations that wait for a checkpoint's files from a store of objects: they keep their place, and can be given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mint.engine.core import LoadState, OptimStep, Sample
from mint.errors import NotFoundError

from .inprocess import Serve, World, play
from .test_cancelling import cancel, fails
from .test_object_store import PROMPT, lose_copies


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"file://{tmp_path}/objects"


@asynccontextmanager
async def slowly(world: World, error: Exception | None = None) -> AsyncIterator[None]:
    """What is asked for in the block comes from the store when the block has ended, or is refused then."""
    gate, store = threading.Event(), world.services.catalog.store
    fetch = store.fetch

    def wait(name: str) -> None:
        gate.wait(20)
        if error is not None:
            raise error
        fetch(name)

    store.fetch = wait  # type: ignore[method-assign]
    lose_copies(world)
    try:
        yield
    finally:
        gate.set()
        store.fetch = fetch  # type: ignore[method-assign]


async def saved(world: World, kind: str = "save_weights") -> tuple[str, str]:
    """A run and its checkpoint, of which nothing is here."""
    run = await world.alice.run()
    return run, (await world.alice.result(kind, {"model_id": run, "seq_id": 1, "path": "a"}))["path"]


async def asked(world: World, sampler: str) -> str:
    body: dict[str, Any] = {**PROMPT, "sampling_session_id": sampler, "seq_id": 0}
    request_id: str = (await world.alice.ok("asample", body))["request_id"]
    return request_id


def test_a_run_waits_for_files_however_long_they_take(serve: Serve, store: str) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store, gap_seconds=0.05) as world:
            run, path = await saved(world)
            async with slowly(world):
                load = await world.alice.ok("load_weights", {"model_id": run, "seq_id": 2, "path": path})
                step = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 3})
                await asyncio.sleep(0.3)
                assert world.worker.times(OptimStep) == 0
            assert (await world.alice.retrieve(load["request_id"])).get("path") == path
            assert "metrics" in await world.alice.retrieve(step["request_id"])
            order = [type(command) for command in world.worker.executed if isinstance(command, LoadState | OptimStep)]
            assert order == [LoadState, OptimStep]

    play(scene)


def test_a_run_goes_on_without_files_that_cannot_be_had(serve: Serve, store: str) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run, path = await saved(world)
            async with slowly(world, NotFoundError("gone")):
                load = await world.alice.ok("load_weights", {"model_id": run, "seq_id": 2, "path": path})
                step = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 3})
            assert (await world.alice.retrieve(load["request_id"]))["error"] == "gone"
            assert "metrics" in await world.alice.retrieve(step["request_id"])
            assert (await world.alice.send("DELETE", f"models/{run}")).status_code == 200

    play(scene)


def test_a_sample_that_waits_for_its_weights_can_be_cancelled(serve: Serve, store: str) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            _, path = await saved(world, "save_weights_for_sampler")
            sampler = await world.alice.sampler(model_path=path)
            async with slowly(world):
                request_id = await asked(world, sampler)
                await cancel(world, request_id)
                await fails(world, request_id, "cancelled")
            await asyncio.gather(*world.services.fetches)
            await fails(world, request_id, "cancelled")
            assert world.worker.times(Sample) == 0

    play(scene)


def test_the_end_of_a_session_is_that_of_samples_that_wait_for_weights(serve: Serve, store: str) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run, path = await saved(world, "save_weights_for_sampler")
            session = await world.alice.session()
            sampler = await world.alice.sampler(session, model_path=path)
            async with slowly(world):
                request_id = await asked(world, sampler)
                assert (await world.alice.post(f"sessions/{session}/finish")).status_code == 204
                await fails(world, request_id, "was finished")
            await asyncio.gather(*world.services.fetches)
            assert world.worker.times(Sample) == 0
            assert "metrics" in await world.alice.step(run, 2)

    play(scene)
