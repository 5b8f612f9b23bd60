"""The audit log and usage: what is written, and who reads it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from .inprocess import Api, Serve, World, datum, play
from .key_rows import add

HOURS = timedelta(hours=1)


def window(hours: int = 3) -> dict[str, str]:
    """Around now; the hour may end in between."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - HOURS
    return {"starting_on": start.isoformat(), "ending_before": (start + hours * HOURS).isoformat()}


async def events(api: Api, **params: str) -> list[dict[str, Any]]:
    response = await api.send("GET", "audit", params=params)
    assert response.status_code == 200, response.text
    return response.json()["entries"]


async def used(api: Api) -> dict[str, Any]:
    response = await api.send("GET", "billing/usage/events", params=window())
    assert response.status_code == 200, response.text
    return response.json()


def amounts(answer: dict[str, Any]) -> dict[tuple[str, str, bool], int]:
    """By stream, kind and whether from the cache, in sum over hours."""
    found: dict[tuple[str, str, bool], int] = {}
    for event in answer["data"]:
        info = event["event_info"]
        key = event["stream_id"], info["type"], info.get("cached", False)
        found[key] = found.get(key, 0) + info.get("token_count", info.get("count"))
    return found


def test_what_happens_is_in_the_audit_log(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            made, key = await add(world, "sk-made-beside", owner="lab")
            run = await made.run()
            saved = await made.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            await made.ok("auth/token")
            await made.send("GET", "auth/apikey/me")
            assert (await world.bob.post("get_info", {"model_id": run})).status_code == 403
            mine = await events(made)
            assert [entry["event"] for entry in mine] == [
                "training_run_create",
                "checkpoint_save",
                "token_create",
                "key_login",
            ]
            whose = {"owner": "lab", "training_run_id": run}
            assert mine[0]["event_details"] == {**whose, "base_model": "base", "key_id": key.key_id}
            assert mine[1]["event_details"] == {**whose, "path": saved["path"]}
            (refusal,) = await events(world.bob)
            assert refusal["event"] == "access_refuse"
            assert refusal["event_details"]["path"] == "/api/v1/get_info"
            # an admin reads everybody's, in order
            everything = await events(world.admin)
            assert everything == sorted([*mine, refusal], key=lambda entry: entry["timestamp"])
            assert await events(made, event_type="checkpoints") == [mine[1]]
            assert await events(made, event_type="projects") == []
            assert await events(made, day=date(2020, 1, 1).isoformat()) == []
            assert await events(made, day=datetime.now(UTC).date().isoformat()) == mine
            for params in ({"day": "yesterday"}, {"event_type": "other"}):
                assert (await made.send("GET", "audit", params=params)).status_code == 422

    play(scene)


async def work(world: World, api: Api) -> tuple[str, str]:
    """Six tokens trained in passes, three without gradients, six by train_step; two samples of five after four."""
    session = await api.ok("create_session", {"user_metadata": {"name": "x"}, "project_id": "p"})
    run, sampler = await api.run(session["session_id"]), await api.sampler(session["session_id"])
    answer = await api.pass_(run, 1, datum(), datum())
    await api.pass_(run, 1, datum(), datum())  # a retry counts once
    assert (await api.pass_(run, 2, datum([1, 200, 3]))).status_code == 400  # a refusal not at all
    await api.pass_(run, 3, datum(), forward_only=True)
    await api.step(run, 4)
    await api.ok("retrieve_future", answer.json())
    body = {"sampling_session_id": sampler, "seq_id": 1, "num_samples": 2, "sampling_params": {"max_tokens": 5}}
    await api.result("asample", {**body, "prompt": {"chunks": [{"tokens": [1, 2, 3, 4]}]}})
    await api.result("save_weights", {"model_id": run, "seq_id": 5, "path": "a"})
    return run, sampler


def test_usage_is_what_finished_operations_used(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run, sampler = await work(world, world.alice)
            theirs, their_sampler = await work(world, world.bob)
            answer = await used(world.alice)
            expected = {
                (run, "training", False): 9,
                (run, "checkpoint", False): 1,
                (sampler, "sampling_prefill", False): 4,
                (sampler, "sampling_sample", False): 10,
            }
            assert amounts(answer) == expected
            session = run.partition(":")[0]
            assert answer["sessions"] == {session: {"user_metadata": {"name": "x"}}}
            assert {(event["session_id"], event["project_id"]) for event in answer["data"]} == {(session, "p")}
            assert amounts(await used(world.admin)) == {
                **expected,
                (theirs, "training", False): 9,
                (theirs, "checkpoint", False): 1,
                # the worker knew all of this prompt but its last token, of which the samples are drawn
                (their_sampler, "sampling_prefill", True): 3,
                (their_sampler, "sampling_prefill", False): 1,
                (their_sampler, "sampling_sample", False): 10,
            }
            # a worker that dies makes the run's history run again, which is not counted again
            world.worker.die()
            await world.alice.step(run, 6)
            assert amounts(await used(world.alice)) == expected
        async with serve() as world:
            await world.alice.step(run, 7)
            assert amounts(await used(world.alice)) == expected

    play(scene)


def test_a_window_of_usage_is_checked(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            good = window()
            hour = datetime.fromisoformat(good["starting_on"])
            for name, value, status in (
                ("starting_on", "yesterday", 422),
                ("starting_on", "2026-01-01T00:00:00", 422),
                ("starting_on", (hour + timedelta(minutes=1)).isoformat(), 400),
                ("starting_on", (hour + 2 * HOURS).isoformat(), 400),
                ("starting_on", "2026-01-01T00:30:00+05:00", 400),
                ("ending_before", hour.isoformat(), 400),
                ("ending_before", (hour + timedelta(days=14, hours=1)).isoformat(), 400),
            ):
                response = await world.alice.send("GET", "billing/usage/events", params={**good, name: value})
                assert response.status_code == status, (name, value, response.text)
                assert name in response.json()["field"]
            far = {"starting_on": "0001-01-01T00:00:00+14:00", "ending_before": "9999-12-31T23:00:00-14:00"}
            assert (await world.alice.send("GET", "billing/usage/events", params=far)).status_code == 400

    play(scene)


def test_stored_checkpoints_are_told_by_project_and_owner(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            await work(world, world.alice)
            run, _ = await work(world, world.bob)
            await world.bob.result("save_weights_for_sampler", {"model_id": run, "seq_id": 6, "path": "b"})

            async def stored(api: Api, **params: str) -> list[tuple[str, int, int]]:
                answer = (await api.send("GET", "billing/usage/checkpoints/current", params=params)).json()
                return [(item["project_id"], item["checkpoint_count"], item["size_bytes"]) for item in answer["data"]]

            assert await stored(world.alice) == [("p", 1, 1)]
            assert await stored(world.admin) == [("p", 2, 2), ("p", 1, 1)]
            assert await stored(world.admin, project_id="q") == []

    play(scene)
