"""A session's timeline, and the link to it."""

from __future__ import annotations

from time import time
from typing import Any

import pytest

from mint.server import signing

from .inprocess import Serve, World, play
from .test_checkpoints import SAMPLE, saved


async def link(world: World, session: str) -> str:
    answer = (await world.alice.send("GET", f"sessions/{session}/trace_export")).json()
    assert answer["status"] == "ready"
    return str(answer["url"])


def test_every_operation_is_in_it(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            began = time()
            session = await world.alice.session()
            run, sampler = await world.alice.run(session), await world.alice.sampler(session)
            await saved(world.alice, run, 1)
            await world.alice.result("asample", {**SAMPLE, "sampling_session_id": sampler, "seq_id": 7})
            await world.alice.post("optim_step", {"model_id": run, "seq_id": 2, "adam_params": {"beta1": 2.0}})
            world.worker.paused = True
            await world.alice.ok("optim_step", {"model_id": run, "seq_id": 3})
            events = (await world.alice.http.get(await link(world, session))).json()["traceEvents"]
            names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
            begun = {event["id"]: event for event in events if event["ph"] == "b"}
            seen = [(names[e["pid"]], e["name"], e["args"]["seq_id"], e["args"]["status"]) for e in begun.values()]
            assert seen == [
                (run, "create_model", 0, "done"),
                (run, "save_weights", 1, "done"),
                (run, "optim_step", 2, "failed"),
                (run, "optim_step", 3, "pending"),
                (sampler, "sample", 7, "done"),
            ]
            ended = {event["id"]: event["ts"] for event in events if event["ph"] == "e"}
            for name, event in begun.items():
                assert began * 1e6 - 1 <= event["ts"] <= ended[name] <= time() * 1e6 + 1

    play(scene)


def test_a_link_is_for_one_session_for_an_hour_and_for_this_process(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with serve() as world:
            session, other = await world.alice.session(), await world.alice.session()
            url = await link(world, session)

            async def code(url: str) -> Any:
                response = await world.bob.http.get(url)
                return response.status_code

            assert await code(url) == 200
            assert await code(url.replace(session, other)) == 401
            assert await code(url.replace("expires=", "expires=9")) == 401
            assert await code(url.partition("?")[0]) == 401
            assert await code(f"{url}é") == 401
            later = time() + signing.LINK_SECONDS + 1
            with monkeypatch.context() as patch:
                patch.setattr(signing, "time", lambda: later)
                assert await code(url) == 401
        async with serve() as world:
            assert await code(url) == 401
            assert await code(await link(world, session)) == 200

    play(scene)
