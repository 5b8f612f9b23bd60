"""What operators see: liveness, readiness, metrics, log lines, the last seconds."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from mint.config import EngineConfig
from mint.observability.logs import JsonLines
from mint.server.http import drain
from mint.store.database import Database

from .inprocess import Serve, World, play

USER = {"role": "user", "content": "a"}


async def samples(world: World) -> dict[str, float]:
    """Every sample of `/metrics`, as `name{label=value}`."""
    response = await world.alice.http.get("/metrics", headers={"Authorization": f"Bearer {world.admin.key}"})
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def ready(world: World) -> tuple[int, dict[str, bool]]:
    response = await world.alice.http.get("/readyz")
    return response.status_code, response.json()["checks"]


def test_readiness_is_models_database_and_will(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            await world.services.started.wait()
            fine = {"models": True, "database": True, "accepting": True}
            assert await ready(world) == (200, fine)
            with monkeypatch.context() as patch:

                async def refuse(_: Database) -> None:
                    raise OperationalError("", {}, Exception("disk full"))

                patch.setattr(Database, "check_writable", refuse)
                assert await ready(world) == (503, {**fine, "database": False})
            with monkeypatch.context() as patch:
                patch.setattr("mint.dispatch.fleet.Fleet.ready", False)
                assert await ready(world) == (503, {**fine, "models": False})
                assert (await world.alice.http.get("/healthz")).status_code == 200
            world.services.draining = True
            assert await ready(world) == (503, {**fine, "accepting": False})

    play(scene)


def test_operations_are_counted_once_and_gauges_are_of_now(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.pass_(run, 1)
            await world.alice.step(run, 2)
            await world.alice.ok("optim_step", {"model_id": run, "seq_id": 2})  # a retry
            world.worker.paused = True
            waiting = [await world.alice.ok("optim_step", {"model_id": run, "seq_id": number}) for number in (3, 4)]
            found = await samples(world)
            done = "mint_operations_total{kind=%s}{outcome=done}"
            assert [found[done % kind] for kind in ("create_model", "forward_backward", "optim_step")] == [1, 1, 1]
            assert found["mint_operation_seconds_count{kind=optim_step}"] == 1
            assert found["mint_tokens_total{use=training}"] == 3
            assert found["mint_queue_depth{kind=optim_step}"] == found["mint_operations_under_way"] == 2
            assert (found["mint_sessions"], found["mint_runs"], found["mint_worker_up{model=base}"]) == (1, 1, 1)
            assert found["mint_database_bytes"] > 0
            assert found["process_resident_memory_bytes"] > 0
            world.worker.resume()
            for operation in waiting:
                await world.alice.retrieve(operation["request_id"])
            await world.alice.post(f"sessions/{run.partition(':')[0]}/finish")
            found = await samples(world)
            assert found[done % "optim_step"] == 3
            assert "mint_queue_depth{kind=optim_step}" not in found
            assert (found["mint_operations_under_way"], found["mint_sessions"], found["mint_runs"]) == (0, 0, 0)

    play(scene)


def test_samples_are_in_line_or_with_a_worker(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(paused=True, engine=EngineConfig(max_decode_batch=2)) as world:
            sampler = await world.alice.sampler()
            body = {"sampling_session_id": sampler, "prompt": {"chunks": [{"tokens": [1]}]}}
            body["sampling_params"] = {"max_tokens": 1}
            drawn = [await world.alice.ok("asample", {**body, "seq_id": number}) for number in range(5)]
            found = await samples(world)
            assert [found[f"mint_samples_{where}{{model=base}}"] for where in ("running", "waiting")] == [2, 3]
            world.worker.resume()
            for operation in drawn:
                await world.alice.retrieve(operation["request_id"])
            found = await samples(world)
            assert [found[f"mint_samples_{where}{{model=base}}"] for where in ("running", "waiting")] == [0, 0]

    play(scene)


def test_failures_are_counted_as_such(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = {"model_id": run, "path": "a"}
            first = [await world.alice.ok("save_weights", {**body, "seq_id": number}) for number in (2, 3)]
            await world.alice.step(run, 1)
            answers = [await world.alice.retrieve(operation["request_id"]) for operation in first]
            assert ["error" in answer for answer in answers] == [False, True]
            found = await samples(world)
            outcomes = [found[f"mint_operations_total{{kind=save_weights}}{{outcome={o}}}"] for o in ("done", "failed")]
            assert outcomes == [1, 1]

    play(scene)


def test_log_lines_say_which_request_and_run(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.setFormatter(JsonLines())
    handler.emit = lambda record: lines.append(json.loads(handler.format(record)))  # type: ignore[method-assign]
    access = logging.getLogger("mint.access")

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            headers = {"X-Request-Id": "mine-1"}
            request = await world.alice.post("optim_step", {"model_id": run, "seq_id": 1}, headers=headers)
            assert request.headers["x-request-id"] == "mine-1"
            other = await world.alice.post("telemetry", headers={"X-Request-Id": "not good\n".strip() * 20})
            assert len(other.headers["x-request-id"]) == 16
            line = next(line for line in lines if line["path"] == "/api/v1/optim_step")
            assert line["http_request_id"] == "mine-1"
            assert (line["request_id"], line["run_id"]) == (request.json()["request_id"], run)
            assert (line["status"], line["level"], line["logger"]) == (200, "info", "mint.access")
            assert line["message"] == "POST /api/v1/optim_step 200"
            assert line["owner"].startswith("key-")
            assert line["ms"] >= 0
            assert not [text for text in map(json.dumps, lines) if "alice-secret" in text]

    with caplog.at_level(logging.INFO, "mint.access"):
        access.addHandler(handler)
        try:
            play(scene)
        finally:
            access.removeHandler(handler)


def test_a_server_that_stops_takes_no_work_and_loses_none(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            world.worker.paused = True
            waiting = await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            poll = asyncio.create_task(world.alice.post("retrieve_future", {"request_id": waiting["request_id"]}))
            await asyncio.sleep(0.05)
            drain(world.services)
            assert (await poll).status_code == 408
            response = await world.alice.post("optim_step", {"model_id": run, "seq_id": 2})
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            headers = {"X-API-Key": world.alice.key}
            for path, prompt in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": [USER]})):
                request = {"model": "base", **prompt}
                response = await world.alice.http.post(f"/v1/{path}", json=request, headers=headers)
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        async with serve() as world:
            assert "metrics" in await world.alice.retrieve(waiting["request_id"])
            await world.alice.step(run, 2)  # its number was not spent

    play(scene)
