"""Custom losses: uploaded by the official SDK, computed here, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

import mint
from mint import types
from mint.engine.core import ForwardBackward
from mint.engine.loss_graph import LossGraph
from mint.tiny import NAME
from mint.wire import messages_pb2 as pb
from tests.engine.custom_losses import encoded

from .inprocess import Api, Serve, World, datum, play
from .live import LiveServer
from .sdk import SECONDS, backward, batch, logprobs_of, run_of, step, tokens_of
from .sdk import datum as sdk_datum
from .test_restarts import killed

pytestmark = pytest.mark.filterwarnings("ignore:DEPRECATED")

TensorLike = Any


def weighted(logprobs: TensorLike, weights: TensorLike, margin: TensorLike) -> tuple[TensorLike, dict[str, TensorLike]]:
    """A hinge on each log-probability: tokens that are likely enough are left alone."""
    excess = (-logprobs - margin).clamp(min=0)
    return (weights * excess).sum(), {"custom/active:sum": (excess > 0).sum(), "custom/worst:mean": excess.max()}


RANKS = {"weights": 1, "margin": 0}


async def upload(api: Api, session: str, number: int = 0, **changes: Any) -> Any:
    inputs, graph = encoded(weighted, **RANKS)
    names = {"session_id": session, "custom_loss_seq_id": number, "name": "weighted"}
    return await api.post("create_custom_loss", {**names, "inputs": inputs, "graph": graph, **changes})


async def uploaded(api: Api, session: str) -> str:
    response = await upload(api, session)
    answer = await api.retrieve(response.json()["request_id"])
    assert answer == {"loss_id": f"{session}:loss:0", "type": "create_custom_loss"}
    return answer["loss_id"]


def scalar(value: float) -> pb.Tensor:
    """As the SDK sends it: one element, and no shape."""
    return pb.Tensor(dense=np.array(value, "<f4").tobytes(), dtype=pb.DTYPE_FLOAT32)


def with_margin(value: float = 0.5, **inputs: list[float]) -> pb.Datum:
    message = datum(**{"weights": [1.0, 0.0, -2.0], **inputs})
    message.loss_fn_inputs["margin"].CopyFrom(scalar(value))
    return message


async def custom_pass(api: Api, run: str, number: int, loss_id: str | None, *datums: pb.Datum, **fields: Any) -> Any:
    config = {"loss_id": pb.LossConfigValue(text=loss_id)} if loss_id is not None else {}
    fields = {"loss_fn": "custom", "loss_fn_config_v2": config, **fields}
    return await api.pass_(run, number, *(datums or [with_margin()]), **fields)


# ---------------------------------------------------------------- what the server decides


def test_a_pass_takes_the_graph_along(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            loss_id = await uploaded(world.alice, session)
            response = await custom_pass(world.alice, run, 1, loss_id)
            await world.alice.retrieve(response.json()["request_id"])
            command = passes(world)[0]
            assert isinstance(command.loss_graph, LossGraph)
            assert [each.name for each in command.loss_graph.inputs] == ["logprobs", "weights", "margin"]
            assert command.loss_config == {}
            inputs = command.data[0].loss_inputs
            assert {name: value.shape for name, value in inputs.items()} == {
                "target_tokens": (3,),
                "weights": (3,),
                "margin": (),
            }
            assert inputs["margin"].dtype == np.float32
            world.worker.paused = True
            future = (await custom_pass(world.alice, run, 2, loss_id)).json()
            folder = killed(tmp_path / "data")
        async with serve(folder) as world:
            # the pass that was under way, and a new one: both with the graph that was uploaded before
            await world.alice.retrieve(future["request_id"])
            response = await custom_pass(world.alice, run, 3, loss_id)
            await world.alice.retrieve(response.json()["request_id"])
            assert [each.loss_graph for each in passes(world)] == [command.loss_graph] * 3
            again = await upload(world.alice, session)
            assert await world.alice.retrieve(again.json()["request_id"]) == {
                "loss_id": loss_id,
                "type": "create_custom_loss",
            }

    play(scene)


def passes(world: World) -> list[ForwardBackward]:
    return [command for command in world.worker.executed if isinstance(command, ForwardBackward)]


def test_a_number_of_a_session_is_one_loss(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            answers = await asyncio.gather(*(upload(world.alice, session) for _ in range(4)))
            assert len({answer.json()["request_id"] for answer in answers}) == 1
            # also of what is sent under a number that is taken
            other = await upload(world.alice, session, name="other")
            assert other.json() == answers[0].json()
            second = await upload(world.alice, session, 1)
            assert (await world.alice.retrieve(second.json()["request_id"]))["loss_id"] == f"{session}:loss:1"

    play(scene)


def test_losses_belong_to_their_owner(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            assert (await upload(world.bob, session)).status_code == 403
            loss_id = await uploaded(world.alice, session)
            assert (await upload(world.bob, session)).status_code == 403
            assert (await upload(world.alice, "unknown")).status_code == 404
            run = await world.bob.run()
            for number, (named, status) in enumerate(((loss_id, 403), (f"{session}:loss:7", 404), ("", 404)), 1):
                response = await custom_pass(world.bob, run, number, named)
                assert (response.status_code, response.json()["field"]) == (status, "loss_fn_config.loss_id")
            assert "metrics" in await world.bob.step(run, 4)  # the refused numbers count as spent
            # another session of the same owner
            run = await world.alice.run()
            assert (await custom_pass(world.alice, run, 1, loss_id)).status_code == 200
            await world.alice.post(f"sessions/{session}/finish", {})
            assert (await upload(world.alice, session)).status_code == 200  # a retry
            assert (await upload(world.alice, session, 1)).status_code == 410

    play(scene)


def test_a_graph_that_is_not_allowed_is_not_stored(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            inputs, graph = encoded(weighted, **RANKS)
            graph["nodes"][4]["target"] = "os.system"
            response = await upload(world.alice, session, graph=graph)
            answer = response.json()
            assert (response.status_code, answer["field"]) == (400, "graph.nodes[4].target")
            assert "os.system is not allowed" in answer["detail"]
            for changes, status, field in (
                ({"inputs": inputs[1:]}, 400, "inputs[0]"),
                ({"graph": []}, 422, "graph"),
                ({"name": ""}, 400, "name"),
                ({"custom_loss_seq_id": -1}, 422, "custom_loss_seq_id"),
                ({"graph": {"nodes": [], "padding": "x" * (1 << 20)}}, 413, "body"),
            ):
                response = await upload(world.alice, session, **changes)
                assert (response.status_code, response.json()["field"]) == (status, field)
            await uploaded(world.alice, session)  # the number is still free

    play(scene)


def test_a_datum_without_what_the_loss_reads_is_named(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            loss_id = await uploaded(world.alice, session)
            good, vector = with_margin(), with_margin()
            vector.loss_fn_inputs["margin"].CopyFrom(datum(margin=[1.0, 2.0]).loss_fn_inputs["margin"])
            cases = {
                "margin": (datum(weights=[1.0] * 3), vector, with_margin(float("inf"))),
                "weights": (with_margin(weights=[1.0, float("nan"), 1.0]),),
                "target_tokens": (with_margin(targets=[6, 7]),),
            }
            number = 0
            for name, bad in cases.items():
                for wrong in bad:
                    number += 1
                    response = await custom_pass(world.alice, run, number, loss_id, good, wrong)
                    answer = response.json()
                    assert (response.status_code, answer["datum"]) == (400, 1), answer
                    assert answer["field"] == f"data[1].loss_fn_inputs.{name}", answer
            for fields in ({"loss_fn_config_v2": {}}, {"loss_fn_config_v2": {"loss_id": pb.LossConfigValue(number=1)}}):
                number += 1
                response = await custom_pass(world.alice, run, number, loss_id, good, **fields)
                assert (response.status_code, response.json()["field"]) == (400, "loss_fn_config.loss_id")
            number += 1
            two = {name: pb.LossConfigValue(text=text) for name, text in (("loss_id", loss_id), ("other", "x"))}
            response = await custom_pass(world.alice, run, number, loss_id, good, loss_fn_config_v2=two)
            assert (response.status_code, response.json()["field"]) == (400, "loss_fn_config.other")
            assert not passes(world)

    play(scene)


# ---------------------------------------------------------------- the SDK against a live server


def create(service: mint.ServiceClient, loss: Any, **ranks: int) -> Any:
    return service.create_custom_loss(loss, {"logprobs": 1, **ranks}).result(SECONDS)


def hinge_batch(seed: int) -> list[types.Datum]:
    """Datums with the inputs of `weighted`."""
    data = []
    for index in range(3):
        length = 9 + 4 * index
        weights = np.linspace(-0.5, 1.5, length - 1).astype(np.float32)
        margin = types.TensorData(data=[4.0 + index], dtype="float32", shape=[])
        data.append(sdk_datum(tokens_of(seed + index, length), weights=weights.tolist(), margin=margin))
    return data


@pytest.fixture
def by_the_client(bob: mint.ServiceClient) -> Iterator[mint.ServiceClient]:
    """A client that computes custom losses itself, as against a server that cannot."""
    run_of(bob)
    config = bob.holder._client_config
    bob.holder._client_config = config.model_copy(update={"custom_loss_server_side": False})
    yield bob
    bob.holder._client_config = config


def test_here_and_there_it_is_the_same_loss(alice: mint.ServiceClient, by_the_client: mint.ServiceClient) -> None:
    here, there = create(alice, weighted, **RANKS), create(by_the_client, weighted, **RANKS)
    assert here.loss_id.endswith(":loss:0")
    assert there.loss_id is None
    ours, theirs = run_of(alice), run_of(by_the_client)
    for number in range(3):
        result = ours.forward_backward_custom(hinge_batch(number), here).result(SECONDS)
        expected = theirs.forward_backward_custom(hinge_batch(number), there).result(SECONDS)
        for name in ("loss:sum", "custom/active:sum", "custom/worst:mean"):
            assert result.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-4), name
        for mine, other in zip(logprobs_of(result), logprobs_of(expected), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-4)
        assert step(ours)["grad_norm"] == pytest.approx(step(theirs)["grad_norm"], rel=1e-3)


def test_a_custom_cross_entropy_is_cross_entropy(alice: mint.ServiceClient) -> None:
    handle = create(alice, lambda logprobs: (-logprobs.sum(), {"custom/tokens:sum": logprobs.sum() * 0 + 1}))
    custom, plain = run_of(alice), run_of(alice)
    result, expected = custom.forward_backward_custom(batch(0), handle).result(SECONDS), backward(plain, batch(0))
    assert result.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    assert result.metrics["custom/tokens:sum"] == 4.0
    assert step(custom)["grad_norm"] == pytest.approx(step(plain)["grad_norm"], rel=1e-4)


def test_the_loss_falls_and_chunks_are_one_batch(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    handle = create(alice, lambda logprobs: ((logprobs + 1).square().mean(), {"custom/mean:mean": logprobs.mean()}))
    config = alice.holder._client_config
    alice.holder._client_config = config.model_copy(update={"fwdbwd_max_chunk_len": 3})
    losses, means = [], []
    for _ in range(4):
        metrics = run.forward_backward_custom(batch(0, size=5), handle).result(SECONDS).metrics
        losses.append(metrics["loss:sum"])
        means.append(metrics["custom/mean:mean"])
        step(run, rate=1e-3)
    alice.holder._client_config = config
    assert losses == sorted(losses, reverse=True)
    assert means == sorted(means)


def test_a_forward_pass_has_the_loss_and_no_gradients(alice: mint.ServiceClient) -> None:
    run, plain = run_of(alice), run_of(alice)
    handle = create(alice, weighted, **RANKS)
    forward = run.forward(hinge_batch(0), "custom", {"loss_id": handle.loss_id}).result(SECONDS)
    backward(run, batch(0))
    backward(plain, batch(0))
    assert step(run)["grad_norm"] == pytest.approx(step(plain)["grad_norm"], rel=1e-5)
    result = alice.create_lora_training_client(NAME, rank=4, seed=7).result(SECONDS)
    expected = result.forward_backward_custom(hinge_batch(0), handle).result(SECONDS)
    assert forward.metrics == pytest.approx(expected.metrics, rel=1e-4)


def test_a_loss_over_several_targets(alice: mint.ServiceClient) -> None:
    """Of rank 2: a distribution over four candidates for each position."""

    def divergence(logprobs: TensorLike, weights: TensorLike) -> tuple[TensorLike, dict[str, TensorLike]]:
        return -(weights * logprobs.log_softmax(-1)).sum(), {"custom/best:mean": logprobs.max(dim=-1).values.mean()}

    handle = create(alice, divergence, logprobs=2, weights=2)
    tokens, targets = tokens_of(1, 7), np.array(tokens_of(2, 28)).reshape(7, 4)
    inputs = {
        "target_tokens": types.TensorData.from_numpy(targets),
        "weights": types.TensorData.from_numpy(np.full((7, 4), 0.25, np.float32)),
    }
    data = [types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)]
    run = run_of(alice)
    first = run.forward_backward_custom(data, handle).result(SECONDS)
    (logprobs,) = (output["logprobs"].to_numpy().reshape(7, 4) for output in first.loss_fn_outputs)
    expected = -0.25 * (logprobs - np.log(np.exp(logprobs).sum(-1, keepdims=True))).sum()
    assert first.metrics["loss:sum"] == pytest.approx(expected, rel=1e-4)
    step(run, rate=1e-3)
    assert run.forward_backward_custom(data, handle).result(SECONDS).metrics["loss:sum"] < expected


def test_a_loss_that_fails_fails_alone(alice: mint.ServiceClient, bob: mint.ServiceClient, live: LiveServer) -> None:
    """The run goes on as if the pass had not been, and the worker lives."""
    worker = live.worker.pid
    run, bystander = run_of(alice), run_of(bob)
    for loss, message in (
        (lambda logprobs: ((logprobs[0] - logprobs[0]).sqrt(), {}), "gradient is"),
        (lambda logprobs: (1e300 * 1e300 * logprobs.sum(), {}), "must be finite"),
        (lambda logprobs: (logprobs.exp(), {}), "must be a scalar"),
        (
            lambda logprobs: ((logprobs[:, None, None] * logprobs[:, None]).expand(4096, -1, -1, -1).sum(), {}),
            "at most",
        ),
    ):
        handle = create(alice, loss)
        with pytest.raises(tinker.RequestFailedError, match=message):
            run.forward_backward_custom(batch(0), handle).result(SECONDS)
    assert backward(run, batch(1)).metrics["loss:sum"] == pytest.approx(
        backward(bystander, batch(1)).metrics["loss:sum"], rel=1e-5
    )
    assert step(run)["grad_norm"] == pytest.approx(step(bystander)["grad_norm"], rel=1e-4)
    assert live.worker.pid == worker


def test_what_cannot_be_allowed_is_told_at_once(alice: mint.ServiceClient) -> None:
    import torch

    with pytest.raises(tinker.BadRequestError, match=r"rand_like is not allowed .* random"):
        create(alice, lambda logprobs: ((logprobs * torch.rand_like(logprobs)).sum(), {}))
