"""What becomes of a checkpoint: shared, copied, given a time to live, deleted, swept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import time
from typing import Any

import pytest

from mint.server.sweeper import sweep
from mint.store import checkpoints

from .inprocess import MODEL, Api, Serve, World, play

SAMPLE = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}


async def saved(api: Api, run: str, seq_id: int, name: str = "a", **fields: Any) -> str:
    body = {"model_id": run, "seq_id": seq_id, "path": name, **fields}
    return str((await api.result("save_weights", body))["path"])


def url(path: str, action: str = "") -> str:
    """Of a checkpoint, from its path."""
    run, segment, name = path.removeprefix("tinker://").split("/")
    return f"training_runs/{run}/checkpoints/{segment}/{name}{action}"


async def listed(api: Api) -> list[dict[str, Any]]:
    answer = (await api.send("GET", "checkpoints")).json()
    assert answer["cursor"] == {"offset": 0, "limit": 100, "total_count": len(answer["checkpoints"])}
    rows: list[dict[str, Any]] = answer["checkpoints"]
    return rows


async def status(api: Api, method: str, path: str, action: str = "", **request: Any) -> int:
    return (await api.send(method, url(path, action), **request)).status_code


def folders(world: World) -> set[str]:
    return {entry.name for entry in world.services.catalog.checkpoint_dir.iterdir()}


def passing(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let so much time pass for checkpoints."""
    later = checkpoints.time() + seconds
    monkeypatch.setattr(checkpoints, "time", lambda: later)


def test_what_is_told_of_a_checkpoint(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            before = time()
            path = await saved(world.alice, run, 1, ttl_seconds=3600, user_metadata={"step": "1"})
            (row,) = await listed(world.alice)
            times = {name: row.pop(name) for name in ("time", "expires_at")}
            expected = {"tinker_path": path, "checkpoint_id": "weights/a", "checkpoint_type": "training"}
            assert row == {**expected, "size_bytes": 1, "public": False, "user_metadata": {"step": "1"}}
            assert times["time"].endswith("+00:00")
            assert before + 3600 <= _seconds(times["expires_at"]) <= time() + 3600
            info = await world.alice.ok("weights_info", {"tinker_path": path.replace("tinker://", "mint://")})
            shape = {"lora_rank": 4, "train_unembed": True, "train_mlp": True, "train_attn": True}
            assert info == {"base_model": MODEL, "is_lora": True, "optimizer_config": {"type": "adamw"}, **shape}
            for wrong, code in ((f"tinker://{run}/other_weights/a", 400), (f"tinker://{run}/weights/b", 404)):
                response = await world.alice.post("weights_info", {"tinker_path": wrong})
                assert (response.status_code, response.json()["field"]) == (code, "tinker_path")

    play(scene)


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_a_published_checkpoint_is_everyones_to_read_and_its_owners_to_change(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            mine = await world.bob.session()
            load = {"session_id": mine, "model_seq_id": 0, "path": path}
            sampler = {"session_id": mine, "sampling_session_seq_id": 0, "model_path": path}

            async def codes() -> set[int]:
                answers = [
                    await world.bob.post("weights_info", {"tinker_path": path}),
                    await world.bob.send("GET", url(path).rpartition("/weights/")[0]),
                    await world.bob.post("create_sampling_session", sampler),
                    await world.bob.post("asample", {**SAMPLE, "model_path": path}),
                    await world.bob.post("load_weights", load),
                ]
                return {answer.status_code for answer in answers}

            assert await codes() == {403}
            assert [await status(world.alice, "POST", path, "/publish") for _ in range(2)] == [204, 204]
            assert await codes() == {200}
            assert (await world.bob.retrieve((await world.bob.ok("load_weights", load))["request_id"]))["model_id"]
            for method, action in (("DELETE", ""), ("DELETE", "/publish"), ("POST", "/publish"), ("PUT", "/ttl")):
                assert await status(world.bob, method, path, action, json={}) == 403
            assert (await listed(world.alice))[0]["public"] is True
            assert await listed(world.bob) == []
            assert await status(world.alice, "DELETE", path, "/publish") == 204
            later = {**sampler, "sampling_session_seq_id": 1}
            assert (await world.bob.post("create_sampling_session", later)).status_code == 403
            # what was made of it goes on
            await world.bob.step(f"{mine}:train:0", 1)
            await world.bob.result("asample", {**SAMPLE, "sampling_session_id": f"{mine}:sample:0"})

    play(scene)


def test_others_see_of_a_run_what_is_published(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "base_model": MODEL}
            metadata = {"user_metadata": {"secret": "x"}, "lora_config": {"rank": 4}}
            run = (await world.alice.result("create_model", {**body, **metadata}))["model_id"]
            await saved(world.alice, run, 1, "private")
            path = await saved(world.alice, run, 2, "public")
            await saved(world.alice, run, 3, "newest")
            await world.alice.send("POST", url(path, "/publish"))
            rows = (await world.bob.send("GET", f"training_runs/{run}/checkpoints")).json()["checkpoints"]
            assert [row["tinker_path"] for row in rows] == [path]
            assert (await world.bob.send("GET", f"training_runs/{run}")).status_code == 403
            shared = (await world.bob.send("GET", f"training_runs/{run}?access_scope=accessible")).json()
            assert (shared["last_checkpoint"]["tinker_path"], shared["user_metadata"]) == (path, None)
            for scope, runs in (("owned", []), ("accessible", [run])):
                answer = (await world.bob.send("GET", f"training_runs?access_scope={scope}")).json()
                assert [each["training_run_id"] for each in answer["training_runs"]] == runs
                assert all(each["last_checkpoint"]["tinker_path"] == path for each in answer["training_runs"])
                assert answer["cursor"]["total_count"] == len(runs)

    play(scene)


def test_a_time_to_live_is_set_and_taken_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            for wrong in (3599, 3661 * 86400, "soon", -1):
                response = await world.alice.send("PUT", url(path, "/ttl"), json={"ttl_seconds": wrong})
                assert (response.status_code, response.json()["field"]) == (422, "ttl_seconds")
            assert (await listed(world.alice))[0]["expires_at"] is None
            assert await status(world.alice, "PUT", path, "/ttl", json={"ttl_seconds": 3600}) == 204
            assert (await listed(world.alice))[0]["expires_at"] is not None
            assert await status(world.alice, "PUT", path, "/ttl", json={"ttl_seconds": None}) == 204
            assert (await listed(world.alice))[0]["expires_at"] is None
            await world.alice.send("PUT", url(path, "/ttl"), json={"ttl_seconds": 7200})
            passing(monkeypatch, 7201)
            assert await listed(world.alice) == []
            assert await status(world.alice, "PUT", path, "/ttl", json={}) == 404
            assert (await world.alice.post("weights_info", {"tinker_path": path})).status_code == 404

    play(scene)


@pytest.mark.parametrize("reader", ["sampler", "load", "sample"])
def test_what_is_in_use_is_not_deleted(serve: Serve, reader: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            session = await world.alice.session()
            if reader == "load":
                await world.alice.result("load_weights", {"session_id": session, "model_seq_id": 0, "path": path})
                who = f"run {session}:train:0"
            elif reader == "sampler":
                who = f"sampler {await world.alice.sampler(session, model_path=path)}"
            else:  # of no session
                world.worker.paused = True
                future = await world.alice.ok("asample", {**SAMPLE, "model_path": path})
                who = f"operation {future['request_id']}"
            response = await world.alice.send("DELETE", url(path))
            assert (response.status_code, response.json()["type"]) == (400, "InUseError")
            assert who in response.json()["detail"]
            assert len(await listed(world.alice)) == 1
            world.worker.resume()
            if reader == "sample":
                await world.alice.retrieve(future["request_id"])
            await world.alice.post(f"sessions/{session}/finish")
            assert await status(world.alice, "DELETE", path) == 204
            assert await listed(world.alice) == []
            assert await status(world.alice, "DELETE", path) == 404
            await sweep(world.services)
            assert folders(world) == set()

    play(scene)


def test_files_that_are_damaged_are_not_loaded(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = await saved(world.alice, run, 1)
            (name,) = folders(world)
            (world.services.catalog.checkpoint_dir / name / "weights").write_text("12345")
            response = await world.alice.post("load_weights", {"model_id": run, "seq_id": 2, "path": path})
            assert (response.status_code, response.json()["type"]) == (410, "DamagedError")
            assert "weights has 5 bytes" in response.json()["detail"]
            await world.alice.step(run, 3)

    play(scene)


def test_of_two_saves_the_later_one_stands_however_long_they_take(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has much to hash, the second little."""
    from time import sleep

    from mint.store import files

    commit, durations = files.commit, iter((0.3, 0.0))

    def slowly(root: Path, name: str) -> None:
        sleep(next(durations))
        commit(root, name)

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            monkeypatch.setattr(files, "commit", slowly)
            bodies = [{"model_id": run, "seq_id": seq_id, "path": "a", "overwrite": True} for seq_id in (1, 2)]
            futures = [(await world.alice.ok("save_weights", body))["request_id"] for body in bodies]
            await asyncio.gather(*map(world.alice.retrieve, futures))
            await sweep(world.services)
            assert folders(world) == {futures[1]}

    play(scene)


def test_who_may_read_it_and_its_end_are_in_the_audit_log(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            for method, rest in (("POST", "/publish"), ("POST", "/publish"), ("DELETE", "/publish"), ("DELETE", "")):
                assert await status(world.alice, method, path, rest) == 204
            entries = (await world.alice.send("GET", "audit", params={"event_type": "checkpoints"})).json()["entries"]
            names = [entry["event"].removeprefix("checkpoint_") for entry in entries]
            assert names == ["save", "publish", "unpublish", "delete"]
            assert {entry["event_details"]["path"] for entry in entries} == {path}

    play(scene)
