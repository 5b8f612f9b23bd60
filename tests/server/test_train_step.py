"""train_step: a pass and its optimizer step under one number."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mint
import mint.mint as mintx
from mint.engine.core import AdamParams, ForwardBackward, OptimStep, TrainStep

from .inprocess import MODEL, PROTOBUF, Serve, World, play
from .live import LiveServer
from .sdk import SECONDS, backward, batch, logprobs_of, run_of, step
from .test_custom_loss import uploaded
from .test_restarts import killed, kinds

pytestmark = pytest.mark.filterwarnings("ignore:DEPRECATED")

NAN = float("nan")
STEP_METRICS = {"optim/grad_norm:unique", "optim/step:unique", "optim/learning_rate:unique"}


def datum(tokens: object = (5, 6, 7), **inputs: Any) -> dict[str, Any]:
    targets = {"target_tokens": {"data": [6, 7, 8], "dtype": "int64"}}
    return {"model_input": {"chunks": [{"tokens": tokens}]}, "loss_fn_inputs": targets | inputs}


def content(*data: Any, **fields: Any) -> dict[str, Any]:
    return {"data": list(data) or [datum()], "loss_fn": "cross_entropy", **fields}


def csr(**fields: Any) -> dict[str, Any]:
    """Weights (3, 2) with a one in each row."""
    tensor = {"data": [1, 1, 1], "dtype": "float32", "shape": [3, 2]}
    return {**tensor, "sparse_crow_indices": [0, 1, 2, 3], "sparse_col_indices": [0, 0, 1], **fields}


def request(run: str, seq_id: int, **fields: Any) -> dict[str, Any]:
    return {"model_id": run, "seq_id": seq_id, "forward_backward_input": content(), **fields}


# ---------------------------------------------------------------- one operation


def test_it_is_one_operation_under_one_number(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            body = request(run, 1, adam_params={"learning_rate": 0.5, "grad_clip_norm": 2})
            answers = await asyncio.gather(*(world.alice.ok("train_step", body) for _ in range(5)))
            assert len({answer["request_id"] for answer in answers}) == 1
            assert answers[0]["model_id"] == run
            result = await world.alice.retrieve(answers[0]["request_id"])
            assert result["metrics"] == {"loss:sum": 2.0, "optim/grad_norm:unique": 1.0}
            assert result["loss_fn_outputs"][0]["logprobs"]["data"] == [-2.0, -2.0, -2.0]
            (command,) = (each for each in world.worker.executed if isinstance(each, TrainStep))
            assert command.adam == AdamParams(learning_rate=0.5, grad_clip_norm=2.0)
            assert command.forward_backward.data[0].tokens.tolist() == [5, 6, 7]
            assert not command.forward_backward.forward_only
            assert world.worker.times(ForwardBackward, OptimStep) == 0
            await world.alice.step(run, 2)

    play(scene)


def test_the_answer_is_protobuf_for_who_reads_that(serve: Serve) -> None:
    from mint.wire import messages_pb2 as pb

    async def scene() -> None:
        async with serve() as world:
            future = await world.alice.ok("train_step", request(await world.alice.run(), 1))
            response = await world.alice.post("retrieve_future", future, headers={"Accept": PROTOBUF})
            assert response.headers["content-type"] == PROTOBUF
            output = pb.ForwardBackwardOutput.FromString(response.content)
            assert dict(output.metrics) == {"loss:sum": 2.0, "optim/grad_norm:unique": 1.0}
            assert output.loss_fn_outputs[0].num_datums == 1

    play(scene)


def test_it_keeps_its_place_among_others(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            later = [
                await world.alice.ok("optim_step", {"model_id": run, "seq_id": 3}),
                await world.alice.ok("train_step", request(run, 2)),
            ]
            assert world.worker.times(TrainStep, OptimStep) == 0
            await world.alice.pass_(run, 1)
            for future in later:
                await world.alice.retrieve(future["request_id"])
            assert kinds(world, run) == ["CreateRun", "ForwardBackward", "TrainStep", "OptimStep"]

    play(scene)


def test_it_is_done_again_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            await world.alice.result("train_step", request(run, 1))
            world.worker.paused = True
            pending = await world.alice.ok("train_step", request(run, 2, adam_params={"learning_rate": 0.25}))
            folder = killed(tmp_path / "data")
        async with serve(folder) as world:
            assert (await world.alice.retrieve(pending["request_id"]))["metrics"]["loss:sum"] == 3.0
            assert kinds(world, run) == ["CreateRun", "TrainStep", "TrainStep"]
            assert world.worker.executed[-1].adam == AdamParams(learning_rate=0.25)

    play(scene)


def test_a_run_keeps_its_rollout_correction(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            body = {"session_id": await world.alice.session(), "model_seq_id": 0, "base_model": MODEL}
            config = {"rollout_is": "token", "loss_type": "reinforce"}
            body |= {"lora_config": {"rank": 4}, "rollout_correction_config": config}
            run = (await world.alice.result("create_model", body))["model_id"]
            vector = {"data": [1.0, 1.0, 1.0], "dtype": "float32"}
            policy = content(datum(logprobs=vector, advantages=vector), loss_fn="importance_sampling")
            await world.alice.result("train_step", request(run, 1, forward_backward_input=policy))
            correction = world.worker.executed[-1].forward_backward.rollout_correction
            assert correction is not None
            assert correction.rollout_is == "token"

    play(scene)


def test_a_custom_loss_goes_along(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run, loss_id = await world.alice.run(session), await uploaded(world.alice, session)
            inputs = {"weights": {"data": [1.0] * 3, "dtype": "float32"}, "margin": {"data": [0.5], "dtype": "float32"}}
            custom = content(datum(**inputs), loss_fn="custom", loss_fn_config={"loss_id": loss_id})
            await world.alice.result("train_step", request(run, 1, forward_backward_input=custom))
            graph = world.worker.executed[-1].forward_backward.loss_graph
            assert graph is not None
            assert graph.name == "weighted"

    play(scene)


# ---------------------------------------------------------------- refusals

PASSES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no input": ({"forward_backward_input": None}, 400, "forward_backward_input"),
    "no data": ({"forward_backward_input": {"loss_fn": "cross_entropy"}}, 400, "forward_backward_input.data"),
    "empty data": ({"forward_backward_input": {"data": [], "loss_fn": "cross_entropy"}}, 400, "data"),
    "a forward": ({"forward_input": content()}, 400, "forward_input"),
    "unknown loss": ({"forward_backward_input": content(loss_fn="nonsense")}, 400, "loss_fn"),
    "setting that is none": (
        {"forward_backward_input": content(loss_fn="ppo", loss_fn_config={"clip_low_threshold": "x"})},
        400,
        "loss_fn_config.clip_low_threshold",
    ),
    "id beyond the vocabulary": (
        {"forward_backward_input": content(datum(), datum([5, 100, 7]))},
        400,
        "data[1].model_input",
    ),
    "weights too short": (
        {"forward_backward_input": content(datum(), datum(weights={"data": [1.0], "dtype": "float32"}))},
        400,
        "data[1].loss_fn_inputs.weights",
    ),
    "bad rate": ({"adam_params": {"learning_rate": -1}}, 422, "adam_params.learning_rate"),
    "settings that are none": ({"adam_params": []}, 422, "adam_params"),
    "another optimizer": ({"optimizer_params": {"type": "dimuon"}}, 400, "optimizer_params.type"),
    "another optimizer's settings": ({"adam_params": {"type": "dimuon"}}, 400, "adam_params.type"),
    "an optimizer that is none": ({"adam_params": {"type": 7}}, 422, "adam_params.type"),
    "CSR that is nested": (
        {"forward_backward_input": content(datum(), datum(weights=csr(sparse_crow_indices=[[0], [1], [2], [3]])))},
        400,
        "data[1].loss_fn_inputs.weights",
    ),
    "a boolean among numbers": (
        {"forward_backward_input": content(datum(), datum(weights={"data": [True, 1, 1], "dtype": "float32"}))},
        400,
        "data[1].loss_fn_inputs.weights",
    ),
}


ENCODINGS = {
    "as it is": lambda text: text.encode(),
    "with a half of a pair": lambda text: f'{{"other": "\\ud800", {text[1:]}'.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
}


async def goes_on(world: World, run: str, seq_id: int) -> None:
    """The refused number is spent, and nothing came of it."""
    assert world.worker.times(TrainStep) == 0
    assert "metrics" in await world.alice.step(run, seq_id)
    assert kinds(world, run)[1:] == ["OptimStep"]


@pytest.mark.parametrize("case", PASSES)
def test_what_is_refused(serve: Serve, case: str) -> None:
    """In whatever encoding, although only one of them is read."""
    fields, status, field = PASSES[case]

    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for number, (encoding, encode) in enumerate(ENCODINGS.items(), 1):
                body, headers = encode(json.dumps(request(run, number, **fields))), {"Content-Type": "application/json"}
                response = await world.alice.send("POST", "train_step", content=body, headers=headers)
                answer = response.json()
                read = encoding == "as it is"
                assert (response.status_code, answer["field"]) == ((status, field) if read else (400, "body")), answer
                assert answer["detail"].startswith(answer["field"])
                assert answer.get("datum") == (1 if read and "[1]" in field else None)
            await goes_on(world, run, len(ENCODINGS) + 1)

    play(scene)


def test_whose_run_it_is(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            for run_id, status in ((run, 403), ("nobody:train:0", 404)):
                response = await world.bob.post("train_step", request(run_id, 1))
                assert (response.status_code, response.json()["field"]) == (status, "model_id")
            for seq_id in (0, -1, None, 1 << 63):
                response = await world.alice.post("train_step", {**request(run, 1), "seq_id": seq_id})
                assert (response.status_code, response.json()["field"]) == (400, "seq_id")
            for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
                headers = {"Content-Type": "application/json"}
                response = await world.alice.send("POST", "train_step", content=body, headers=headers)
                assert (response.status_code, response.json()["field"]) == (400, "body")
            await goes_on(world, run, 1)

    play(scene)


# ---------------------------------------------------------------- against a live server


def as_json(data: list[mint.types.Datum]) -> list[dict[str, Any]]:
    return [
        {
            "model_input": each.model_input.model_dump(mode="json"),
            "loss_fn_inputs": {
                name: {"data": tensor.data, "dtype": tensor.dtype, "shape": tensor.shape}
                for name, tensor in each.loss_fn_inputs.items()
            },
        }
        for each in data
    ]


def result(live: LiveServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = live.post(path, body)
    assert response.status_code == 200, response.text
    answer = live.post("retrieve_future", {"request_id": response.json()["request_id"]})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def read_logprobs(answer: dict[str, Any]) -> list[list[float]]:
    return [np.float32(each["logprobs"]["data"]).tolist() for each in answer["loss_fn_outputs"]]


def test_it_equals_its_two_halves(live: LiveServer, alice: mint.ServiceClient) -> None:
    halves, whole = run_of(alice), run_of(alice)
    settings = {"learning_rate": 1e-2, "weight_decay": 0.1, "grad_clip_norm": 0.5}
    for number in range(1, 4):
        passed = backward(halves, batch(number))
        stepped = halves.optim_step(mint.types.AdamParams(**settings)).result(SECONDS).metrics
        body = {"model_id": whole.model_id, "seq_id": number, "adam_params": settings}
        data = {"data": as_json(batch(number)), "loss_fn": "cross_entropy"}
        answer = result(live, "train_step", {**body, "forward_backward_input": data})
        assert read_logprobs(answer) == logprobs_of(passed)
        assert answer["metrics"] == passed.metrics | {f"optim/{name}:unique": value for name, value in stepped.items()}
        assert answer["metrics"].keys() >= STEP_METRICS
    assert answer["metrics"]["optim/step:unique"] == 3
    assert answer["metrics"]["optim/learning_rate:unique"] == 1e-2
    after = {"data": as_json(batch(9)), "loss_fn": "cross_entropy"}
    answer = result(live, "forward", {"model_id": whole.model_id, "seq_id": 4, "forward_input": after})
    expected = halves.forward(batch(9), "cross_entropy").result(SECONDS)
    assert read_logprobs(answer) == logprobs_of(expected)


def test_the_sdks_client_sends_it_in_its_turn(alice: mint.ServiceClient) -> None:
    """Among the client's other calls, without waiting for any; a result can be awaited."""
    halves, whole = run_of(alice), run_of(alice)
    params = mint.types.AdamParams(learning_rate=1e-2)
    futures = []
    for number in range(4):
        whole.forward_backward(batch(10 + number), "cross_entropy")
        futures.append(mintx.train_step(whole, batch(number), "cross_entropy", params))

    async def collect() -> list[mint.types.ForwardBackwardOutput]:
        return [await future for future in futures]

    for number, output in enumerate(asyncio.run(collect())):
        backward(halves, batch(10 + number))
        passed, stepped = backward(halves, batch(number)), step(halves)
        # passes that wait together share a batch, so that they round otherwise
        for mine, theirs in zip(logprobs_of(output), logprobs_of(passed), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-3)
        metrics = passed.metrics | {f"optim/{name}:unique": value for name, value in stepped.items()}
        assert output.metrics == pytest.approx(metrics, rel=1e-4)


def test_a_refused_step_leaves_the_gradients(alice: mint.ServiceClient) -> None:
    run, other = run_of(alice), run_of(alice)
    for each in (run, other):
        backward(each, batch(1))
    negative = mint.types.AdamParams(learning_rate=-1.0)
    with pytest.raises(mint.UnprocessableEntityError, match=r"adam_params\.learning_rate"):
        mintx.train_step(run, batch(2), "cross_entropy", negative).result(SECONDS)
    with pytest.raises(mint.UnprocessableEntityError, match=r"adam_params\.learning_rate"):
        run.optim_step(negative).result(SECONDS)
    assert step(run) == step(other)


def test_a_pass_that_fails_takes_no_step(live: LiveServer, alice: mint.ServiceClient) -> None:
    """The loss overflows in the engine, behind all that the server can check."""
    run, other = run_of(alice), run_of(alice)
    first = batch(1)[:1]
    inputs = {"target_tokens": first[0].loss_fn_inputs["target_tokens"].data}
    count = len(inputs["target_tokens"])
    ratio = {"logprobs": [-1e4] * count, "advantages": [1.0] * count}
    bad = mint.types.Datum(model_input=first[0].model_input, loss_fn_inputs={**inputs, **ratio})
    data = {"data": as_json([bad]), "loss_fn": "importance_sampling"}
    failed = result(live, "train_step", {"model_id": run.model_id, "seq_id": 1, "forward_backward_input": data})
    assert failed["category"] == "user"
    good = {"data": as_json(batch(2)), "loss_fn": "cross_entropy"}
    body = {"model_id": run.model_id, "seq_id": 2, "forward_backward_input": good}
    expected = {**body, "model_id": other.model_id, "seq_id": 1}
    assert result(live, "train_step", body) == result(live, "train_step", expected)
