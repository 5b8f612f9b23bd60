"""The private parts of the SDK that `submission` uses are where it expects them, and do what it relies on."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from tinker import types
from tinker.lib.api_future_impl import _APIFuture
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType
from tinker.lib.internal_client_holder import InternalClientHolder
from tinker.lib.public_interfaces.training_client import TrainingClient, fetch_training_info
from tinker.lib.queue_state_logger import QueueStateLogger
from tinker.types.shared.untyped_api_future import UntypedAPIFuture

import mint.mint as mintx
from mint.client.submission import submit


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_private_parts_are_where_they_were() -> None:
    assert parameters(TrainingClient._get_request_id) == ["self"]
    assert parameters(TrainingClient._take_turn)[:2] == ["self", "min_turn"]
    assert parameters(InternalClientHolder.execute_with_retries)[:2] == ["self", "func"]
    assert parameters(InternalClientHolder.run_coroutine_threadsafe) == ["self", "coro"]
    assert parameters(InternalClientHolder.aclient) == ["self", "client_pool_type"]
    assert {"model_cls", "holder", "untyped_future", "request_start_time", "request_type", "queue_state_observer"} <= {
        *parameters(_APIFuture)
    }
    assert parameters(InternalClientHolder.get_session_id) == ["self"]
    assert parameters(InternalClientHolder.get_training_client_id) == ["self"]
    assert parameters(fetch_training_info) == ["holder", "model_id"]
    assert parameters(TrainingClient.__init__) == ["self", "holder", "model_seq_id", "model_id", "info"]
    assert len(parameters(QueueStateLogger)) >= 2
    assert isinstance(inspect.getattr_static(tinker.ServiceClient, "holder"), property)
    assert ClientConnectionPoolType.TRAIN
    assert {"request_id", "model_id"} <= UntypedAPIFuture.model_fields.keys()


class Http:
    """As much of the SDK's HTTP client as is used, by us and by its own `optim_step`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.training = self

    async def optim_step(self, *, request: types.OptimStepRequest) -> Any:
        self.sent.append(("/api/v1/optim_step", {"seq_id": request.seq_id}))
        raise tinker.TinkerError("enough")

    async def post(self, path: str, *, body: bytes, options: dict[str, Any], cast_to: type[Any]) -> Any:
        assert options == {"headers": {"Content-Type": "application/json"}}
        self.sent.append((path, json.loads(body)))
        raise tinker.TinkerError("enough")


class Holder:
    """Runs everything on a loop of its own, when it is told to."""

    def __init__(self) -> None:
        self.http = Http()
        self.waiting: list[Any] = []

    @contextmanager
    def aclient(self, _pool: object) -> Iterator[Http]:
        yield self.http

    async def execute_with_retries(self, function: Any) -> Any:
        return await function()

    def run_coroutine_threadsafe(self, coroutine: Any) -> Any:
        self.waiting.append(coroutine)
        return coroutine

    def get_telemetry(self) -> None:
        return None

    def run(self) -> list[dict[str, Any]]:
        async def everything() -> None:
            await asyncio.gather(*self.waiting, return_exceptions=True)

        asyncio.run(everything())
        return [body for _, body in self.http.sent]


@pytest.fixture
def client() -> TrainingClient:
    info = types.GetInfoResponse(model_data={}, model_id="s:train:0")
    return TrainingClient(Holder(), 0, "s:train:0", info=info)  # type: ignore[arg-type]


def sent_by(client: TrainingClient) -> list[dict[str, Any]]:
    holder: Any = client.holder
    bodies: list[dict[str, Any]] = holder.run()
    return bodies


def datum(**inputs: Any) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs={"target_tokens": [2, 3], **inputs}
    )


def test_a_train_step_as_it_is_sent(client: TrainingClient) -> None:
    adam = types.AdamParams(learning_rate=0.5)
    sparse = types.TensorData([7], "int64", [2, 9], [0, 1, 1], [4])
    soft = types.Datum(model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs={"target_tokens": sparse})
    mintx.train_step(client, [datum(), soft], "ppo", adam, {"clip_low_threshold": np.float32(0.5), "loss_id": "x"})
    (body,) = sent_by(client)
    content = body["forward_backward_input"]
    assert (body["model_id"], body["seq_id"]) == ("s:train:0", 1)
    assert body["adam_params"] == adam.model_dump()
    assert content["loss_fn"] == "ppo"
    assert content["loss_fn_config"] == {"clip_low_threshold": 0.5, "loss_id": "x"}
    first, second = content["data"]
    assert first["model_input"] == {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}
    assert first["loss_fn_inputs"] == {"target_tokens": {"data": [2, 3], "dtype": "int64", "shape": [2]}}
    assert second["loss_fn_inputs"]["target_tokens"] == {
        "data": [7],
        "dtype": "int64",
        "shape": [2, 9],
        "sparse_crow_indices": [0, 1, 1],
        "sparse_col_indices": [4],
    }


def test_a_reverse_kl_as_it_is_sent(client: TrainingClient) -> None:
    data = [
        mintx.ReverseKLDatum([1, 2], types.ModelInput.from_ints([9, 2]), np.array([2, 3]), (0.5, 1)),
        mintx.ReverseKLDatum([1], [9], types.TensorData([2], "int64"), np.float32([2])),
        mintx.ReverseKLDatum([1], [9], [1.5]),
    ]
    mintx.forward_backward_reverse_kl(client, data, "tinker://r/weights/a", 2)
    mintx.forward_backward_reverse_kl(client, data[:1])
    body, plain = sent_by(client)
    assert (body["reference_model_path"], body["temperature"]) == ("tinker://r/weights/a", 2.0)
    assert (plain["reference_model_path"], plain["temperature"]) == (None, 1.0)
    first, second, third = body["data"]
    assert first["student_input"]["chunks"][0]["tokens"] == [1, 2]
    assert first["reference_input"]["chunks"][0]["tokens"] == [9, 2]
    assert (first["target_tokens"], first["weights"]) == ([2, 3], [0.5, 1])
    assert second["target_tokens"] == {"data": [2], "dtype": "int64"}
    assert second["weights"] == [2.0]
    assert (third["target_tokens"], third["weights"]) == ([1.5], None), "the server refuses what is no token"


def test_calls_are_sent_in_the_order_in_which_they_were_made(client: TrainingClient) -> None:
    """With the SDK's own among them, whatever the order in which its threads come to run."""
    holder: Any = client.holder
    client.optim_step(types.AdamParams())
    mintx.train_step(client, [datum()], "cross_entropy", types.AdamParams())
    client.optim_step(types.AdamParams())
    mintx.forward_backward_reverse_kl(client, [])
    holder.waiting.reverse()
    assert [body["seq_id"] for body in sent_by(client)] == [1, 2, 3, 4]
    assert [path.removeprefix("/api/v1/") for path, _ in holder.http.sent] == [
        "optim_step",
        "train_step",
        "optim_step",
        "mint/forward_backward_reverse_kl",
    ]


def test_what_cannot_be_sent_uses_no_number(client: TrainingClient) -> None:
    for data in ([mintx.ReverseKLDatum([1.5], [1], [1])], [mintx.ReverseKLDatum([1], [1], [[1], [1, 2]])]):
        with pytest.raises((TypeError, ValueError)):
            mintx.forward_backward_reverse_kl(client, data)
    with pytest.raises(TypeError):
        submit(client, "train_step", {"what": object()}, dict, lambda answer: answer)
    with pytest.raises((TypeError, ValueError)):
        mintx.train_step(client, [datum()], "ppo", types.AdamParams(), {"clip_low_threshold": ["0.1"]})  # type: ignore[dict-item]
    # NaN is the server's to refuse, which says where it is
    mintx.train_step(client, [datum(weights=[float("nan"), 1.0])], "cross_entropy", types.AdamParams())
    (body,) = sent_by(client)
    assert body["seq_id"] == 1
    assert np.isnan(body["forward_backward_input"]["data"][0]["loss_fn_inputs"]["weights"]["data"][0])


# ---------------------------------------------------------------- what is too large


class Refusing(Http):
    """Refuses what is longer than `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    async def post(self, path: str, *, body: bytes, options: dict[str, Any], cast_to: type[Any]) -> Any:
        with suppress(tinker.TinkerError):
            await super().post(path, body=body, options=options, cast_to=cast_to)
        status = 413 if len(body) > self.limit else 400
        request = httpx.Request("POST", "http://server")
        raise tinker.APIStatusError("refused", response=httpx.Response(status, request=request), body=None)


@pytest.mark.parametrize(("limit", "status", "times"), [(100, 413, 2), (1 << 20, 400, 1)])
def test_a_number_that_was_not_read_is_given_up(client: TrainingClient, limit: int, status: int, times: int) -> None:
    holder: Any = client.holder
    holder.http = Refusing(limit)
    refused: Any = mintx.train_step(client, [datum()], "cross_entropy", types.AdamParams())
    with pytest.raises(tinker.APIStatusError) as caught:
        asyncio.run(refused)
    assert caught.value.status_code == status, "the first refusal is the one to know of"
    assert len(holder.http.sent) == times
    if times == 2:
        assert holder.http.sent[1] == ("/api/v1/train_step", {"model_id": "s:train:0", "seq_id": 1})


def test_settings_of_another_optimizer_are_never_sent(client: TrainingClient) -> None:
    dimuon = types.DimuonParams(learning_rate=0.1)
    for params in (dimuon, {"learning_rate": 0.1}, None):
        with pytest.raises(TypeError, match="adam_params must be AdamParams"):
            mintx.train_step(client, [datum()], "cross_entropy", params)  # type: ignore[arg-type]
    mintx.train_step(client, [datum()], "cross_entropy", types.AdamParams())
    (body,) = sent_by(client)
    assert body["seq_id"] == 1
