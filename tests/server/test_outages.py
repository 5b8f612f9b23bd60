"""Databases that are full, locked or gone: a clear word, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from time import time
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import text

from mint.engine.core import OptimStep, SaveState
from mint.store import usage
from mint.store.usage import HOUR, Use
from tests.postgres import Cluster

from .inprocess import ON_BOTH, Serve, World, play

ON_POSTGRESQL = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


async def say(world: World, statement: str) -> Any:
    """To the database, on the server's own connection."""
    return await world.services.database.transaction(lambda c: c.execute(text(statement)).scalar())


def step(run: str, seq_id: int, **more: str) -> dict[str, Any]:
    return {"model_id": run, "seq_id": seq_id, **more}


def says_later(response: httpx.Response) -> bool:
    """In the way that the SDK and every other client of HTTP understands."""
    told = "the database cannot be used now" in response.text
    return response.status_code == 503 and int(response.headers["Retry-After"]) >= 1 and told


async def is_ready(world: World) -> bool:
    return (await world.alice.http.get("/readyz")).json()["checks"]["database"]


def test_a_full_disk_is_told_and_spends_no_number(serve: Serve) -> None:
    """The limit is SQLite's own, so that the error comes from where it would."""

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await say(world, f"PRAGMA max_page_count = {await say(world, 'PRAGMA page_count')}")
            large = step(run, 1, ignored="x" * 200_000)
            for _ in range(2):
                assert says_later(await world.alice.post("optim_step", large))
            assert world.worker.times(OptimStep) == 0
            await say(world, "PRAGMA max_page_count = 1000000")
            assert await world.alice.result("optim_step", large) == {"metrics": {"step": 1.0}}

    play(scene)


def test_a_lock_is_told_and_nothing_is_lost(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", step(run, 1))
            poll = asyncio.create_task(world.alice.retrieve(future["request_id"]))
            await say(world, "PRAGMA busy_timeout = 20")
            other = sqlite3.connect(tmp_path / "data" / "mint.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            world.worker.resume()
            assert says_later(await world.alice.post("optim_step", step(run, 2)))
            assert not await is_ready(world)
            assert not poll.done()
            other.execute("ROLLBACK")
            other.close()
            assert await poll == {"metrics": {"step": 1.0}}
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}

    play(scene)


@ON_POSTGRESQL
def test_a_database_that_is_gone_for_a_while_is_a_pause(serve: Serve, cluster: Cluster) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            future = await world.alice.ok("optim_step", step(run, 1))
            poll = asyncio.create_task(world.alice.retrieve(future["request_id"]))
            cluster.stop()
            try:
                world.worker.resume()
                for path, body in {"optim_step": step(run, 2), "create_session": {}}.items():
                    assert says_later(await world.alice.post(path, body))
                prompt = {"model": f"tinker://{run}/sampler_weights/a", "prompt": "x"}
                headers = {"X-API-Key": world.alice.key}
                assert says_later(await world.alice.http.post("/v1/completions", json=prompt, headers=headers))
                assert not await is_ready(world)
                assert not poll.done()
            finally:
                cluster.start()
            assert await poll == {"metrics": {"step": 1.0}}
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}
            assert await is_ready(world)
            assert world.worker.times(OptimStep) == 2

    play(scene)


@pytest.fixture
def no_sweeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """It commits too, and the word that is lost is to be another's."""

    async def nothing(_services: object) -> None: ...

    monkeypatch.setattr("mint.server.app.keep_sweeping", nothing)


def lose_the_word(world: World, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Cut the connection between a commit and the word of it, once, after so many commits that go well."""
    dialect = world.services.database._engine.dialect
    commit, commits = dialect.do_commit, []

    def do_commit(connection: Any) -> None:
        commit(connection)
        commits.append(1)
        if len(commits) == after + 1:
            connection.dbapi_connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_commit", do_commit)


@pytest.mark.usefixtures("no_sweeper")
@ON_POSTGRESQL
@pytest.mark.parametrize("comes_again", [True, False])
def test_what_was_journaled_without_a_word_is_carried_out_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, comes_again: bool
) -> None:
    async def scene() -> None:
        async with serve(long_poll_seconds=0.2) as world:
            run = await world.alice.run()
            lose_the_word(world, monkeypatch)
            assert says_later(await world.alice.post("optim_step", step(run, 1)))
            if comes_again:
                again = await world.alice.ok("optim_step", step(run, 1))
                while (answer := await world.alice.post("retrieve_future", again)).status_code == 408:
                    pass
                assert answer.json() == {"metrics": {"step": 1.0}}
            assert await world.alice.step(run, 2) == {"metrics": {"step": 2.0}}
            assert world.worker.times(OptimStep) == 2

    play(scene)


@pytest.mark.usefixtures("no_sweeper")
@ON_POSTGRESQL
def test_a_result_that_was_written_without_a_word_is_written_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            save = await world.alice.ok("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            lose_the_word(world, monkeypatch)
            world.worker.resume()
            saved = await world.alice.retrieve(save["request_id"])
            assert saved["path"] == f"tinker://{run}/weights/a"
            counted = await world.services.database.transaction(lambda c: usage.between(c, 0, int(time()) + HOUR))
            assert [quantity for bucket, quantity in counted if bucket.use == Use.CHECKPOINTS] == [1]
            assert world.worker.times(SaveState) == 1

    play(scene)


@pytest.mark.usefixtures("no_sweeper")
@ON_POSTGRESQL
def test_a_refusal_that_was_written_without_a_word_spends_its_number(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            wrong = {**step(run, 1), "adam_params": {"beta1": 7}}
            lose_the_word(world, monkeypatch)
            assert says_later(await world.alice.post("optim_step", wrong))
            assert (await world.alice.post("optim_step", wrong)).status_code == 422
            assert await world.alice.step(run, 2) == {"metrics": {"step": 1.0}}

    play(scene)


@ON_BOTH
def test_text_that_no_database_keeps_is_refused(serve: Serve, database_url: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            for body in ({"user_metadata": {"a": "\0"}}, {"user_metadata": {"\0": "a"}}):
                refused = await world.alice.post("create_session", body)
                assert refused.status_code == 422
                assert refused.json()["field"].startswith("user_metadata")
            refused = await world.alice.post("create_session", {"display_name": "a\0b"})
            assert refused.status_code == (200 if database_url.startswith("sqlite") else 400), refused.text

    play(scene)
