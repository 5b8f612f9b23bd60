"""Saved weights: names, lifetimes, sampling sessions, and loading."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mint.engine.core import ExportRevision, LoadState
from mint.store import checkpoints

from .inprocess import MODEL, Serve, World, play


async def save(world: World, run: str, seq_id: int, route: str = "save_weights", **fields: Any) -> Any:
    return await world.alice.result(route, {"model_id": run, "seq_id": seq_id, **fields})


async def draw(world: World, sampler: str) -> str:
    """Sample once; returns what the revision's files hold."""
    body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}
    await world.alice.result("asample", {**body, "sampling_session_id": sampler})
    return (world.worker.executed[-1].revision.directory / "weights").read_text()


def test_a_saved_state_and_a_saved_revision(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            saved = await save(world, run, 1, path="step-1")
            assert saved == {"path": f"tinker://{run}/weights/step-1", "type": "save_weights"}
            revision = await save(world, run, 2, "save_weights_for_sampler", path="step-1")
            assert revision == {"path": f"tinker://{run}/sampler_weights/step-1"}
            for path in (saved["path"], revision["path"]):
                assert await draw(world, await world.alice.sampler(model_path=path)) == "1"

    play(scene)


def test_a_revision_without_a_name_is_a_sampling_session(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            first = await save(world, run, 1, "save_weights_for_sampler", sampling_session_seq_id=0, kind="snapshot")
            assert list(first) == ["sampling_session_id"]
            await world.alice.step(run, 2)
            second = await save(world, run, 3, "save_weights_for_sampler", sampling_session_seq_id=1)
            assert await draw(world, first["sampling_session_id"]) == "1"
            assert await draw(world, second["sampling_session_id"]) == "2"
            answer = (await world.alice.send("GET", f"samplers/{first['sampling_session_id']}")).json()
            assert answer == {"sampler_id": first["sampling_session_id"], "base_model": MODEL}
            exported = [command for command in world.worker.executed if isinstance(command, ExportRevision)]
            assert len({command.key for command in exported}) == 2

    play(scene)


def test_a_number_of_a_session_is_never_two_samplers(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            await world.alice.sampler(session, 0)
            taken = await save(world, run, 1, "save_weights_for_sampler", sampling_session_seq_id=0)
            assert taken["category"] == "user"
            assert "sampling_session_seq_id" in taken["error"]
            fine = await save(world, run, 2, "save_weights_for_sampler", sampling_session_seq_id=1)
            assert await draw(world, fine["sampling_session_id"]) == "1"

    play(scene)


def test_a_taken_name_is_overwritten_only_on_demand(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = (await save(world, run, 1, path="a"))["path"]
            sampler = await world.alice.sampler(model_path=path)
            await world.alice.step(run, 2)
            response = await world.alice.post("save_weights", {"model_id": run, "seq_id": 3, "path": "a"})
            assert (response.status_code, response.json()["field"]) == (400, "path")
            await save(world, run, 4, path="a", overwrite=True)
            assert await draw(world, sampler) == "1"
            assert await draw(world, await world.alice.sampler(model_path=path)) == "2"

    play(scene)


def test_of_two_saves_at_once_under_one_name_the_second_fails(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            futures = [
                await world.alice.ok("save_weights", {"model_id": run, "seq_id": n, "path": "a"}) for n in (1, 2)
            ]
            world.worker.resume()
            first, second = [await world.alice.retrieve(future["request_id"]) for future in futures]
            assert first["path"].endswith("/a")
            assert second["category"] == "user"
            await world.alice.step(run, 3)

    play(scene)


def test_an_expired_checkpoint_is_gone_and_its_name_free(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = (await save(world, run, 1, path="a", ttl_seconds=3600))["path"]
            await world.alice.sampler(model_path=path)
            now = checkpoints.time()
            monkeypatch.setattr(checkpoints, "time", lambda: now + 3601)
            session = await world.alice.session()
            body = {"session_id": session, "sampling_session_seq_id": 0, "model_path": path}
            assert (await world.alice.post("create_sampling_session", body)).status_code == 404
            await world.alice.step(run, 2)
            assert (await save(world, run, 3, path="a"))["path"] == path
            assert await draw(world, await world.alice.sampler(model_path=path)) == "2"

    play(scene)


def test_loading_into_a_run(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = (await save(world, run, 1, path="a"))["path"]
            revision = (await save(world, run, 2, "save_weights_for_sampler", path="a"))["path"]
            for seq_id, (source, optimizer) in enumerate(((path, True), (path, False), (revision, False)), start=3):
                loaded = await save(world, run, seq_id, "load_weights", path=source, optimizer=optimizer)
                assert loaded == {"path": source, "model_id": run, "type": "load_weights"}
                command = world.worker.executed[-1]
                assert isinstance(command, LoadState)
                assert command.with_optimizer == optimizer
            body = {"model_id": run, "seq_id": 6, "path": revision, "optimizer": True}
            response = await world.alice.post("load_weights", body)
            assert (response.status_code, response.json()["field"]) == (400, "optimizer")
            await world.alice.step(run, 7)

    play(scene)


def test_a_checkpoint_of_another_shape_does_not_fit(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = (await save(world, run, 1, path="a"))["path"]
            body = {"session_id": session, "model_seq_id": 1, "base_model": MODEL, "lora_config": {"rank": 8}}
            wide = (await world.alice.result("create_model", body))["model_id"]
            response = await world.alice.post("load_weights", {"model_id": wide, "seq_id": 1, "path": path})
            assert (response.status_code, response.json()["field"]) == (400, "path")
            assert "lora_rank 4" in response.json()["detail"]
            await world.alice.step(wide, 2)

    play(scene)


def test_a_run_made_from_a_checkpoint(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = (await save(world, run, 1, path="a"))["path"]
            new = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": False}
            answers = await asyncio.gather(*(world.alice.ok("load_weights", new) for _ in range(3)))
            assert len({answer["request_id"] for answer in answers}) == 1
            loaded = await world.alice.retrieve(answers[0]["request_id"])
            info = await world.alice.ok("get_info", {"model_id": loaded["model_id"]})
            assert (info["lora_rank"], info["model_name"]) == (4, MODEL)
            for wrong, field in (
                ({"base_model": "other"}, "base_model"),
                ({"optimizer_config": {"type": "dimuon", "version": 1}}, "optimizer_config.type"),
                ({"model_id": run, "seq_id": 2}, "body"),
                ({"model_seq_id": None}, "body"),
            ):
                response = await world.alice.post("load_weights", {**new, "model_seq_id": 2, **wrong})
                assert (response.status_code, response.json()["field"]) == (400, field), response.text

    play(scene)


def test_a_worker_that_cannot_write_fails_the_save_alone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            monkeypatch.setattr("mint.store.files.os.fsync", no_space)
            failed = await save(world, run, 1, path="a")
            assert failed["category"] == "server"
            monkeypatch.undo()

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    play(scene)
