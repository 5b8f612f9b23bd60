"""Bodies: sizes, compression, and the JSON of older SDKs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zstandard

from mint.engine.core import CreateRun, ForwardBackward, OptimStep
from mint.wire import messages_pb2 as pb

from .inprocess import PROTOBUF, Serve, datum, play
from .test_restarts import killed

LIMIT = 20_000
OLD = {"Accept": "application/json"}


def test_no_route_reads_more_than_the_limit(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(max_body_bytes=LIMIT) as world:
            run = await world.alice.run()

            async def endless() -> AsyncIterator[bytes]:
                for _ in range(LIMIT):
                    yield b" " * 1000

            routes = ("create_session", "telemetry", "optim_step", "forward_backward", "asample", "retrieve_future")
            for content in (b" " * (LIMIT + 1), endless):
                for route in routes:
                    sent = content if isinstance(content, bytes) else content()
                    headers = {"Content-Type": "application/json"}
                    response = await world.alice.send("POST", route, content=sent, headers=headers)
                    assert response.status_code == 413, route
                    assert str(LIMIT) in response.json()["detail"]
            padded = b'{"tags": []' + b" " * (LIMIT - 12) + b"}"
            headers = {"Content-Type": "application/json"}
            response = await world.alice.send("POST", "create_session", content=padded, headers=headers)
            assert response.status_code == 200
            await world.alice.step(run, 1)

    play(scene)


def test_zstd_and_its_bomb(serve: Serve) -> None:
    async def scene() -> None:
        async with serve(max_body_bytes=LIMIT) as world:
            run = await world.alice.run()
            message = pb.ForwardBackwardRequest(model_id=run, seq_id=1, data=[datum()], loss_fn="cross_entropy")
            for content, encoding, status in (
                (zstandard.compress(bytes(100 * LIMIT)), "zstd", 413),
                (b"no frame", "zstd", 400),
                (message.SerializeToString(), "gzip", 400),
                (zstandard.compress(message.SerializeToString()), "zstd", 200),
            ):
                headers = {"Content-Type": PROTOBUF, "Content-Encoding": encoding}
                response = await world.alice.send("POST", "forward_backward", content=content, headers=headers)
                assert response.status_code == status, response.text
            await world.alice.step(run, 2)
            assert world.worker.times(ForwardBackward) == 1

    play(scene)


def old_pass(name: str, run: str, seq_id: int, **fields: Any) -> dict[str, Any]:
    """As SDK 0.6 sends it: no `type`, no defaults."""
    content = {
        "data": [
            {
                "model_input": {"chunks": [{"tokens": [5, 6]}]},
                "loss_fn_inputs": {"target_tokens": {"data": [6, 7], "dtype": "int64", "shape": [2]}},
            }
        ],
        "loss_fn": "cross_entropy",
    }
    return {name: {**content, **fields}, "model_id": run, "seq_id": seq_id}


def test_older_sdks_send_and_read_json(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            backward = await world.alice.ok("forward_backward", old_pass("forward_backward_input", run, 1), headers=OLD)
            answer = await world.alice.ok("retrieve_future", {"request_id": backward["request_id"]}, headers=OLD)
            assert answer == {
                "loss_fn_output_type": "ArrayRecord",
                "loss_fn_outputs": [{"logprobs": {"data": [-2.0, -2.0], "dtype": "float32", "shape": [2]}}],
                "metrics": {"loss:sum": 2.0},
            }
            await world.alice.result("forward", old_pass("forward_input", run, 2), headers=OLD)
            passes = [command for command in world.worker.executed if isinstance(command, ForwardBackward)]
            assert [command.forward_only for command in passes] == [False, True]
            bad = old_pass("forward_input", run, 3, data=[{"model_input": {"chunks": [{"tokens": [1.5]}]}}])
            response = await world.alice.post("forward", bad)
            assert (response.status_code, response.json()["datum"]) == (400, 0)
            bad = {**old_pass("forward_input", run, 4), "forward_input": 7}
            assert (await world.alice.post("forward", bad)).status_code == 400
            await world.alice.step(run, 5)

    play(scene)


def test_a_forward_adds_no_gradients_whatever_it_is_sent(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            message = pb.ForwardBackwardRequest(model_id=run, seq_id=1, data=[datum()], loss_fn="cross_entropy")
            headers = {"Content-Type": PROTOBUF}
            sent = await world.alice.send("POST", "forward", content=message.SerializeToString(), headers=headers)
            await world.alice.retrieve(sent.json()["request_id"])
            await world.alice.result("forward", old_pass("forward_backward_input", run, 2), headers=OLD)
            passes = [command for command in world.worker.executed if isinstance(command, ForwardBackward)]
            assert [command.forward_only for command in passes] == [True, True]
            for path in ("forward", "forward_backward"):
                number = 3 if path == "forward" else 4
                both = {**old_pass("forward_input", run, number), **old_pass("forward_backward_input", run, number)}
                response = await world.alice.post(path, both)
                assert (response.status_code, response.json()["field"]) == (400, "forward_input")
            await world.alice.step(run, 5)
            world.worker.paused = True
            pending = await world.alice.ok("forward", old_pass("forward_backward_input", run, 6))
            folder = killed(tmp_path / "data")
        async with serve(folder) as world:
            await world.alice.retrieve(pending["request_id"])
            # those that were done change nothing, and are not done again
            commands = world.worker.executed
            assert [type(command) for command in commands] == [CreateRun, OptimStep, ForwardBackward]
            assert commands[-1].forward_only

    play(scene)
