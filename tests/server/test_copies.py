"""copy_weights: names of their own for files that are shared."""

from __future__ import annotations

from typing import Any

from mint.server.sweeper import sweep

from .inprocess import MODEL, ON_BOTH, Api, Serve, World, play
from .test_checkpoints import SAMPLE, folders, listed, saved, status, url

KEY = {"X-Idempotency-Key": "11111111-1111-4111-8111-111111111111"}


async def copied(api: Api, path: str, headers: Any = None, **fields: Any) -> str:
    body = {"source_path": path, **({"destination_project_id": "archive"} | fields)}
    answer = await api.ok("copy_weights", body, headers=headers or {})
    assert list(answer) == ["tinker_path"]
    return str(answer["tinker_path"])


async def loads(api: Api, path: str) -> dict[str, Any]:
    body = {"session_id": await api.session(), "model_seq_id": 0, "path": path}
    answer: dict[str, Any] = await api.result("load_weights", body)
    return answer


@ON_BOTH
def test_a_copy_has_its_own_name_owner_and_life(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1, ttl_seconds=3600, user_metadata={"a": "b"})
            await world.alice.send("POST", url(path, "/publish"))
            copy = await copied(world.bob, path)
            (row,) = await listed(world.bob)
            assert (row["tinker_path"], row["checkpoint_id"]) == (copy, "weights/a")
            assert (row["public"], row["expires_at"], row["user_metadata"]) == (False, None, {"a": "b"})
            assert len(folders(world)) == 1
            assert await status(world.alice, "DELETE", path) == 204
            await sweep(world.services)
            assert "model_id" in await loads(world.bob, copy)
            assert (await world.alice.post("weights_info", {"tinker_path": copy})).status_code == 403
            usage = (await world.bob.send("GET", "billing/usage/checkpoints/current?project_id=archive")).json()
            assert [row["checkpoint_count"] for row in usage["data"]] == [1]

    play(scene)


@ON_BOTH
def test_deleting_one_name_of_files_that_are_read_is_no_harm(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            copy = await copied(world.alice, path)
            session = await world.alice.session()
            sampler = await world.alice.sampler(session, model_path=copy)
            assert await status(world.alice, "DELETE", path) == 204
            assert await status(world.alice, "DELETE", copy) == 400
            await world.alice.result("asample", {**SAMPLE, "sampling_session_id": sampler})
            await world.alice.post(f"sessions/{session}/finish")
            assert await status(world.alice, "DELETE", copy) == 204
            await sweep(world.services)
            assert folders(world) == set()

    play(scene)


@ON_BOTH
def test_a_retry_is_answered_what_the_first_try_was(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            path = await saved(world.alice, await world.alice.run(), 1)
            first = await copied(world.alice, path, KEY)
            assert await copied(world.alice, path, {"X-Idempotency-Key": "another"}) != first
            assert await copied(world.alice, path) != await copied(world.alice, path)
            other = {"source_path": path, "destination_project_id": "archive", "ttl_seconds": 3600}
            response = await world.alice.post("copy_weights", other, headers=KEY)
            assert (response.status_code, response.json()["field"]) == (400, "X-Idempotency-Key")
            # a key is its tenant's
            assert (await world.bob.post("copy_weights", other, headers=KEY)).status_code == 403
            # also when what was copied is gone
            assert await status(world.alice, "DELETE", path) == 204
        async with serve() as world:
            assert await copied(world.alice, path, KEY) == first

    play(scene)


@ON_BOTH
def test_a_copy_into_a_session_is_one_of_its_runs_and_cannot_be_trained(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            path = await saved(world.alice, run, 1)
            place = {"session_id": session, "model_seq_id": 1, "destination_project_id": None}
            copy = await copied(world.alice, path, **place)
            assert copy == f"tinker://{session}:train:1/weights/a"
            assert await copied(world.alice, path, **place) == copy
            made = (await world.alice.send("GET", f"sessions/{session}")).json()
            assert made["training_run_ids"] == [run, f"{session}:train:1"]
            for route, body in {
                "optim_step": {"model_id": f"{session}:train:1", "seq_id": 1},
                "create_model": {"session_id": session, "model_seq_id": 1, **_lora()},
                "copy_weights": {"source_path": path, "session_id": session, "model_seq_id": 0},
            }.items():
                assert (await world.alice.post(route, body)).status_code == 400, route
            assert "model_id" in await loads(world.alice, copy)

    play(scene)


def _lora() -> dict[str, Any]:
    return {"base_model": MODEL, "lora_config": {"rank": 4}}


@ON_BOTH
def test_copies_that_are_refused(serve: Serve) -> None:
    async def refused(world: World, code: int, field: str, **body: Any) -> None:
        response = await world.alice.post("copy_weights", body)
        assert (response.status_code, response.json()["field"]) == (code, field), response.text

    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            path = await saved(world.alice, await world.alice.run(session), 1)
            project = {"destination_project_id": "archive"}
            await refused(world, 400, "destination_project_id", source_path=path)
            both = {**project, "session_id": session, "model_seq_id": 1}
            await refused(world, 400, "destination_project_id", source_path=path, **both)
            await refused(world, 400, "destination_project_id", source_path=path, session_id=session)
            await refused(world, 400, "source_path", source_path="tinker://x", **project)
            await refused(world, 404, "source_path", source_path=f"{path}-not", **project)
            await refused(world, 422, "ttl_seconds", source_path=path, ttl_seconds=1, **project)
            assert (await world.alice.send("GET", "sessions")).json() == {"sessions": [session]}

    play(scene)
