"""A database that refuses when a result is to be written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from .inprocess import ON_BOTH, Serve, play


@ON_BOTH
def test_a_database_that_refuses_for_a_while_loses_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            poll = asyncio.create_task(world.alice.retrieve(future["request_id"]))
            await asyncio.sleep(0.05)
            refusals = iter(range(2))
            original = world.services.database.transaction

            async def transaction(work: Callable[[Any], Any]) -> Any:
                for _ in refusals:
                    raise OperationalError("UPDATE", {}, Exception("database or disk is full"))
                return await original(work)

            monkeypatch.setattr(world.services.database, "transaction", transaction)
            world.worker.resume()
            assert await poll == {"metrics": {"step": 1.0}}
            assert next(refusals, None) is None
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}

    play(scene)


def test_a_database_that_refuses_for_good_does_not_keep_the_server_from_stopping(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint.dispatch.dispatcher.CLOSE_SECONDS", 0.2)

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})

            async def refuse(_work: object) -> None:
                raise OperationalError("UPDATE", {}, Exception("database or disk is full"))

            monkeypatch.setattr(world.services.database, "transaction", refuse)
            world.worker.resume()
            await asyncio.sleep(0.05)
        async with serve() as world:
            assert await world.alice.retrieve(future["request_id"]) == {"metrics": {"step": 1.0}}

    play(scene)


@ON_BOTH
def test_rows_that_do_not_fit_fail_the_operation(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()

            def twice(*_: object, **__: object) -> None:
                raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

            with monkeypatch.context() as patch:
                patch.setattr("mint.store.checkpoints.put", twice)
                failed = await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            assert failed["category"] == "server"
            await world.alice.step(run, 2)

    play(scene)
