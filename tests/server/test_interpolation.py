"""Interpolation of checkpoints: whose they are, where the result goes, what is refused."""

from __future__ import annotations

import asyncio
from time import time
from typing import Any

from mint.config import ModelSource
from mint.engine.core import Interpolate
from mint.server.sweeper import sweep
from mint.store import audit

from .inprocess import MODEL, Api, Serve, World, play
from .test_checkpoints import SAMPLE, folders, listed, saved, status, url

ROUTE = "mint/checkpoints/interpolate"
KEY = {"X-Idempotency-Key": "11111111-1111-4111-8111-111111111111"}


async def two(api: Api) -> tuple[str, list[str]]:
    """A run, and two of its checkpoints."""
    run = await api.run()
    return run, [await saved(api, run, 1, "a"), await saved(api, run, 2, "b")]


def commands(world: World) -> list[dict[str, float]]:
    sums = [command for command in world.worker.executed if isinstance(command, Interpolate)]
    return [{source.directory.name: source.coefficient for source in command.sources} for command in sums]


def test_the_result_is_an_ordinary_checkpoint_of_a_run_of_its_own(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, paths = await two(world.alice)
            sources = folders(world)
            body = {"source_paths": paths, "coefficients": [0.25, 0.75], "ttl_seconds": 3600}
            for route, output in ((ROUTE, {}), ("checkpoints/interpolate", {"output_path": "mean"})):
                answer = await world.alice.result(route, {**body, **output})
                path = answer["path"]
                assert path.rpartition("/")[2] == output.get("output_path", "interpolated")
                assert answer == {
                    "path": path,
                    "checkpoint_type": "sampler",
                    "source_paths": paths,
                    "coefficients": [0.25, 0.75],
                    "has_rank_shards": False,
                    "type": "mint_interpolate_checkpoints",
                }
                info = await world.alice.ok("weights_info", {"tinker_path": path})
                assert (info["lora_rank"], info["base_model"], info["train_attn"]) == (8, MODEL, True)
                sampler = await world.alice.sampler(model_path=path)
                await world.alice.result("asample", {**SAMPLE, "sampling_session_id": sampler})
            assert [sorted(each.values()) for each in commands(world)] == [[0.25, 0.75]] * 2
            assert all(each.keys() == sources for each in commands(world))
            assert [row["tinker_path"] for row in await listed(world.alice)][2:] == paths[::-1]
            assert all(row["expires_at"] for row in (await listed(world.alice))[:2])
            holder = (await world.alice.send("GET", f"training_runs/{path.split('/')[2]}")).json()
            assert holder["last_sampler_checkpoint"]["tinker_path"] == path
            # it does not count as a run that lives, and its stream is let go of
            assert run in world.services.dispatcher._streams
            await asyncio.sleep(0.05)
            assert list(world.services.dispatcher._streams) == [run]
            assert world.services.interpolating == {}
            log = await world.services.database.transaction(lambda c: audit.entries(c, 0, time() + 1))
            made = [entry.details for entry in log if entry.event == "checkpoint_save"]
            assert (made[-1]["training_run_id"], made[-1]["source_paths"]) == (path.split("/")[2], paths)

    play(scene)


def test_into_a_run_of_ones_own(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, paths = await two(world.alice)
            target = f"tinker://{run}/sampler_weights/mean"
            body = {"source_paths": paths, "coefficients": [1.0, 1.0], "output_path": target}
            assert (await world.alice.result(ROUTE, body))["path"] == target
            again = await world.alice.post(ROUTE, body)
            assert (again.status_code, again.json()["field"]) == (400, "output_path")
            theirs = await world.bob.run()
            body["output_path"] = f"tinker://{theirs}/sampler_weights/mean"
            assert (await world.alice.post(ROUTE, body)).status_code == 403
            body["output_path"] = "tinker://nobody/sampler_weights/mean"
            assert (await world.alice.post(ROUTE, body)).status_code == 404

    play(scene)


def test_a_checkpoint_given_twice_counts_once(serve: Serve) -> None:
    """Its coefficients are added, also where one name is a copy; those that cancel are not read."""

    async def scene() -> None:
        async with serve() as world:
            _, (a, b) = await two(world.alice)
            copy = (await world.alice.ok("copy_weights", {"source_path": a, "destination_project_id": "p"}))[
                "tinker_path"
            ]
            body = {"source_paths": [a, b, copy, b], "coefficients": [0.5, 1.0, 0.25, -1.0]}
            path = (await world.alice.result(ROUTE, body))["path"]
            assert [list(each.values()) for each in commands(world)] == [[0.75]]
            assert (await world.alice.ok("weights_info", {"tinker_path": path}))["lora_rank"] == 4
            zero = {"source_paths": [a, copy], "coefficients": [1, -1]}
            response = await world.alice.post(ROUTE, zero)
            assert (response.status_code, response.json()["field"]) == (400, "coefficients")

    play(scene)


def test_a_retry_makes_no_second_one(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            _, paths = await two(world.alice)
            body = {"source_paths": paths, "coefficients": [1, 1]}
            first = await world.alice.ok(ROUTE, body, headers=KEY)
            assert await world.alice.ok(ROUTE, body, headers=KEY) == first
            other = await world.alice.ok(ROUTE, {**body, "coefficients": [1, 2]}, headers=KEY)
            assert other != first
            assert await world.alice.ok(ROUTE, body) != first
            answer = await world.alice.retrieve(first["request_id"])
        async with serve() as world:
            assert await world.alice.ok(ROUTE, body, headers=KEY) == first
            assert await world.alice.retrieve(first["request_id"]) == answer

    play(scene)


def test_published_sources_are_everyones_and_others_nobodys(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            _, paths = await two(world.alice)
            await world.alice.send("POST", url(paths[0], "/publish"))
            body: dict[str, Any] = {"source_paths": paths[:1], "coefficients": [2.0]}
            mine = (await world.bob.result(ROUTE, body))["path"]
            assert [row["tinker_path"] for row in await listed(world.bob)] == [mine]
            assert (await world.alice.post("weights_info", {"tinker_path": mine})).status_code == 403
            response = await world.bob.post(ROUTE, {"source_paths": paths, "coefficients": [1, 1]})
            assert (response.status_code, response.json()["field"]) == (403, "source_paths[1]")

    play(scene)


def test_sources_that_are_deleted_meanwhile_are_still_read(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            _, paths = await two(world.alice)
            world.worker.paused = True
            accepted = await world.alice.ok(ROUTE, {"source_paths": paths, "coefficients": [1, 1]})
            session = paths[0].split("/")[2].partition(":")[0]
            await world.alice.post(f"sessions/{session}/finish")
            assert [await status(world.alice, "DELETE", path) for path in paths] == [204, 204]
            await sweep(world.services)
            assert len(folders(world)) == 2
            world.worker.resume()
            assert "path" in await world.alice.retrieve(accepted["request_id"])
            await sweep(world.services)
            assert folders(world) == {accepted["request_id"]}

    play(scene)


def test_it_cannot_be_cancelled(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            _, paths = await two(world.alice)
            world.worker.paused = True
            accepted = await world.alice.ok(ROUTE, {"source_paths": paths, "coefficients": [1, 1]})
            refused = await world.alice.post("cancel_future", {"request_id": accepted["request_id"]})
            assert (refused.status_code, refused.json()["field"]) == (400, "request_id")
            world.worker.resume()
            assert "path" in await world.alice.retrieve(accepted["request_id"])

    play(scene)


def test_it_is_carried_out_after_a_restart(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            _, paths = await two(world.alice)
            world.worker.paused = True
            accepted = await world.alice.ok(ROUTE, {"source_paths": paths, "coefficients": [1, 1]})
        async with serve() as world:
            assert (await world.alice.retrieve(accepted["request_id"]))["source_paths"] == paths
            assert len(commands(world)) == 1

    play(scene)


def test_what_is_refused_leaves_nothing(serve: Serve) -> None:
    async def refused(world: World, code: int, field: str, **body: Any) -> None:
        response = await world.alice.post(ROUTE, body)
        assert (response.status_code, response.json()["field"]) == (code, field), response.text

    async def scene() -> None:
        async with serve() as world:
            _, (a, b) = await two(world.alice)
            both = {"source_paths": [a, b], "coefficients": [1, 1]}
            await refused(world, 422, "source_paths", **{**both, "source_paths": []})
            await refused(world, 422, "source_paths", **{**both, "source_paths": [a] * 65})
            await refused(world, 400, "coefficients", **{**both, "coefficients": [1]})
            await refused(world, 422, "coefficients.1", **{**both, "coefficients": [1, "2"]})
            await refused(world, 422, "output_path", **both, output_path="a/b")
            await refused(world, 422, "output_path", **both, output_path="tinker://x/weights/b")
            await refused(world, 422, "output_checkpoint_type", **both, output_checkpoint_type="training")
            await refused(world, 400, "source_paths[1]", **{**both, "source_paths": [a, "elsewhere"]})
            await refused(world, 404, "source_paths[1]", **{**both, "source_paths": [a, f"{b}-not"]})
            await refused(world, 400, "coefficients", source_paths=[a, a], coefficients=[1.5e308, 1.5e308])
            nan = f'{{"source_paths": ["{a}"], "coefficients": [NaN]}}'
            response = await world.alice.send("POST", ROUTE, content=nan)
            assert (response.status_code, response.json()["field"]) == (422, "coefficients.0")
            assert commands(world) == []
            assert len(await listed(world.alice)) == 2

    play(scene)


def test_sources_are_of_one_base_model_and_so_is_the_run(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(models=(ModelSource(MODEL, "/nowhere"), ModelSource("other", "/nowhere"))) as world:
            run, (a, _) = await two(world.alice)
            session = await world.alice.session()
            lora = {"session_id": session, "model_seq_id": 0, "base_model": "other", "lora_config": {"rank": 4}}
            other = (await world.alice.result("create_model", lora))["model_id"]
            b = await saved(world.alice, other, 1)
            response = await world.alice.post(ROUTE, {"source_paths": [a, b], "coefficients": [1, 1]})
            assert (response.status_code, response.json()["field"]) == (400, "source_paths[1]")
            body = {"source_paths": [b], "coefficients": [1], "output_path": f"tinker://{run}/sampler_weights/c"}
            response = await world.alice.post(ROUTE, body)
            assert (response.status_code, response.json()["field"]) == (400, "output_path")

    play(scene)


def test_what_is_for_download_only_is_no_source(serve: Serve) -> None:
    """It may be encrypted."""

    async def scene() -> None:
        async with serve() as world:
            run, (a, _) = await two(world.alice)
            out = await world.alice.result("save_weights_external", {"model_id": run, "seq_id": 3, "path": "c"})
            body = {"source_paths": [a, out["path"]], "coefficients": [1, 1]}
            response = await world.alice.post(ROUTE, body)
            assert (response.status_code, response.json()["field"]) == (400, "source_paths[1]")
            assert "for download only" in response.text

    play(scene)


def test_the_sum_of_the_ranks_has_a_limit(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            paths = [await saved(world.alice, run, number, f"c{number}") for number in range(1, 10)]
            full = {"source_paths": paths[:8], "coefficients": [1] * 8}
            assert "path" in await world.alice.result(ROUTE, full)
            response = await world.alice.post(ROUTE, {"source_paths": paths, "coefficients": [1] * 9})
            assert (response.status_code, response.json()["field"]) == (400, "source_paths")
            assert "rank 36 in sum" in response.text
            assert "at most 32" in response.text

    play(scene)
