"""The life of a session, and what clients ask before they have one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mint.engine.core import UnloadRun

from .inprocess import MODEL, PROTOBUF, Serve, datum, play


def test_what_a_client_asks_first(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            dynamic = await world.alice.ok("client/dynamic_config", {"sdk_version": "0.38.0", "new": 1})
            assert dynamic == {"sample_cancel_enabled": True}
            capabilities = (await world.alice.send("GET", "get_server_capabilities")).json()
            assert capabilities["supported_models"] == [
                {"model_name": MODEL, "max_context_length": 64, "trainable": True, "sampleable": True}
            ]
            event = {"event": "GENERIC_EVENT", "event_name": "x"}
            body = {"events": [event], "platform": "p", "sdk_version": "0", "session_id": "sessionless-1"}
            assert await world.alice.ok("telemetry", body) == {"status": "accepted"}

    play(scene)


def test_a_heartbeat_needs_a_session_of_ones_own(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            assert await world.alice.ok("session_heartbeat", {"session_id": session}) == {"type": "session_heartbeat"}
            assert (await world.bob.post("session_heartbeat", {"session_id": session})).status_code == 403
            assert (await world.alice.post("session_heartbeat", {"session_id": "x"})).status_code == 404

    play(scene)


def test_after_the_end_everything_of_the_session_is_410(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            sampler = await world.alice.sampler(session)
            other = await world.alice.run()
            finish = {"reason": {"type": "errored"}, "detail": "why"}
            assert (await world.bob.post(f"sessions/{session}/finish", finish)).status_code == 403
            assert (await world.alice.post("sessions/unknown/finish", finish)).status_code == 404
            response = await world.alice.post(f"sessions/{session}/finish", finish)
            assert (response.status_code, response.content) == (204, b"")
            # the first reason stands, and a retry is no error
            assert (await world.alice.post(f"sessions/{session}/finish", {})).status_code == 204

            lora = {"base_model": MODEL, "lora_config": {"rank": 4}}
            sample = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_session_id": sampler}
            new_sampler = {"session_id": session, "sampling_session_seq_id": 1, "base_model": MODEL}
            for path, body in {
                "session_heartbeat": {"session_id": session},
                "create_model": {"session_id": session, "model_seq_id": 1, **lora},
                "optim_step": {"model_id": run, "seq_id": 1},
                "save_weights": {"model_id": run, "seq_id": 2, "path": "a"},
                "save_weights_for_sampler": {"model_id": run, "seq_id": 3, "path": "a"},
                "create_sampling_session": new_sampler,
                "asample": {**sample, "sampling_params": {"max_tokens": 1}},
                "get_info": {"model_id": run},
            }.items():
                response = await world.alice.post(path, body)
                assert response.status_code == 410, path
                assert "finished (errored)" in response.json()["detail"]
            assert (await world.alice.pass_(run, 4)).status_code == 410
            await world.alice.step(other, 1)
            while world.worker.times(UnloadRun) < 1:
                await asyncio.sleep(0.01)
            assert set(world.worker.runs) == {other}

    play(scene)


def test_the_end_does_not_take_what_was_accepted(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            world.worker.paused = True
            future = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            response = await world.alice.post(f"sessions/{session}/finish", {})
            assert response.status_code == 204  # at once, though the run is busy
            world.worker.resume()
            assert "metrics" in await world.alice.retrieve(future["request_id"])
            world.worker.resume()
            while world.worker.runs:
                await asyncio.sleep(0.01)

    play(scene)


def test_what_a_run_is(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            info = await world.alice.ok("get_info", {"model_id": run, "type": "get_info"})
            assert info["model_id"] == run
            assert (info["model_name"], info["is_lora"], info["lora_rank"]) == (MODEL, True, 4)
            assert info["model_data"] == {"arch": "Fake", "model_name": MODEL, "tokenizer_id": "/nowhere"}

    play(scene)


def test_what_a_sampler_is(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            plain, saved = await world.alice.sampler(), await world.alice.sampler(model_path=path)
            answer = (await world.alice.send("GET", f"samplers/{plain}")).json()
            assert answer == {"sampler_id": plain, "base_model": MODEL}
            answer = (await world.alice.send("GET", f"samplers/{saved}")).json()
            assert answer == {"sampler_id": saved, "base_model": MODEL, "model_path": path}
            assert (await world.alice.send("GET", "samplers/unknown")).status_code == 404
            mint_scheme = await world.alice.sampler(model_path=path.replace("tinker://", "mint://"))
            assert (await world.alice.send("GET", f"samplers/{mint_scheme}")).json()["model_path"] == path

    play(scene)


@pytest.mark.parametrize("unknown", [{"new_field": {"a": [1]}, "type": "other"}])
def test_unknown_fields_are_ignored_everywhere(serve: Serve, unknown: dict[str, Any]) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = (await world.alice.ok("create_session", {"tags": [], **unknown}))["session_id"]
            lora = {"rank": 4, **unknown}
            names = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": lora}
            run = (await world.alice.result("create_model", {**names, **unknown}))["model_id"]
            adam = {"learning_rate": 0.1, **unknown, "type": "adamw"}
            await world.alice.result("optim_step", {"model_id": run, "seq_id": 1, "adam_params": adam, **unknown})
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 2, "path": "a", **unknown})
            path = f"tinker://{run}/weights/a"
            loaded = await world.alice.result("load_weights", {"model_id": run, "seq_id": 3, "path": path, **unknown})
            assert loaded["path"] == path
            named = {"session_id": session, "sampling_session_seq_id": 0, "model_path": path}
            sampler = (await world.alice.ok("create_sampling_session", {**named, **unknown}))["sampling_session_id"]
            chunk = {"tokens": [1], "new_field": 1}
            body = {"prompt": {"chunks": [chunk], **unknown}, "sampling_session_id": sampler, **unknown}
            await world.alice.result("asample", {**body, "sampling_params": {"max_tokens": 1, **unknown}})
            await world.alice.ok("session_heartbeat", {"session_id": session, **unknown})
            message = datum().SerializeToString() + b"\xfa\x7f\x01x"  # a field numbered 2047
            body = b"\x0a" + bytes([len(run)]) + run.encode() + b"\x10\x04\x22\x0dcross_entropy"
            body += b"\x1a" + bytes([len(message)]) + message + b"\xfa\x7f\x01x"
            headers = {"Content-Type": PROTOBUF}
            response = await world.alice.send("POST", "forward_backward", content=body, headers=headers)
            assert "metrics" in await world.alice.retrieve(response.json()["request_id"])

    play(scene)


def test_requests_wait_while_models_are_loaded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        loaded = asyncio.Event()

        async def wait(_fleet: object) -> None:
            await loaded.wait()
            await original(_fleet)

        from mint.dispatch.fleet import Fleet

        original = Fleet.start
        monkeypatch.setattr(Fleet, "start", wait)
        async with serve(long_poll_seconds=0.3) as world:
            assert (await world.alice.send("GET", "healthz")).status_code == 503
            assert (await world.alice.ok("client/config", {})) == {}
            # no busy client: an answer takes as long as a long-poll
            response = await world.alice.post("retrieve_future", {"request_id": "req-1"})
            assert (response.status_code, "starting" in response.json()["detail"]) == (503, True)
            # a wrong key does not wait
            wrong = await world.alice.post("create_session", {}, headers={"X-API-Key": "sk-wrong-key"})
            assert wrong.status_code == 401
            session = asyncio.create_task(world.alice.session())
            await asyncio.sleep(0.05)
            assert not session.done()
            loaded.set()
            assert (await session).startswith("session-")
            assert (await world.alice.send("GET", "healthz")).json() == {"status": "ok"}

    play(scene)


def test_healthz_needs_a_worker_and_no_key(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            await world.alice.session()
            assert (await world.alice.http.get("/api/v1/healthz")).status_code == 200
            world.worker.die()
            assert (await world.alice.http.get("/api/v1/healthz")).status_code == 503
            while len(world.workers) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            assert (await world.alice.http.get("/api/v1/healthz")).status_code == 200

    play(scene)
