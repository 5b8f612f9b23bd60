"""Training clients of robot policies: one request for one step, and all else the SDK's."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
from tinker import types
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
from tinker.lib.public_interfaces.training_client import TrainingClient

import mint.mint as mintx

from .test_openpi_data import built
from .test_submission import Holder


@pytest.fixture
def client() -> mintx.OpenPITrainingClient:
    info = types.GetInfoResponse(model_data={}, model_id="s:train:0")
    return mintx.OpenPITrainingClient(TrainingClient(Holder(), 0, "s:train:0", info=info))  # type: ignore[arg-type]


def test_a_step_is_one_request_however_many_its_data(client: mintx.OpenPITrainingClient) -> None:
    data = [built()] * 1500  # the SDK would send more than 1024 in two
    client.train_step(data, "cross_entropy", adam_params=types.AdamParams(learning_rate=0.5))
    holder: Any = client.holder
    (body,) = holder.run()
    assert len(body["forward_backward_input"]["data"]) == 1500
    assert body["adam_params"]["learning_rate"] == 0.5
    assert body["forward_backward_input"]["data"][0]["model_input"]["chunks"][0]["expected_tokens"] == 256


def test_its_defaults_are_the_sdks(client: mintx.OpenPITrainingClient) -> None:
    async def step() -> None:
        await client.train_step_async([built()], "ppo", {"clip_low_threshold": 0.8})

    asyncio.run(step())
    holder: Any = client.holder
    (body,) = holder.run()
    assert body["adam_params"] == types.AdamParams().model_dump()
    assert body["forward_backward_input"]["loss_fn_config"] == {"clip_low_threshold": 0.8}


def test_all_else_is_the_training_clients(client: mintx.OpenPITrainingClient) -> None:
    assert client.model_id == "s:train:0"
    assert client.save_state.__self__ is client.training_client
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        client.nonsense  # noqa: B018


class Service:
    """Notes what is asked for, and has no run until it is told."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.created: Future[Any] = Future()

    def create_lora_training_client(self, base_model: str, **options: Any) -> Any:
        self.asked.append((base_model, options))
        return AwaitableConcurrentFuture(self.created)


def test_a_run_is_asked_for_as_it_was_published() -> None:
    service: Any = Service()
    service.created.set_result("run")
    made = mintx.create_openpi_training_client(service)
    assert made.training_client == "run"  # type: ignore[comparison-overlap]
    other = asyncio.run(
        mintx.create_openpi_training_client_async(service, base_model="a/b", rank=4, user_metadata={"x": "y"})
    )
    assert other.training_client == "run"  # type: ignore[comparison-overlap]
    assert service.asked == [
        (mintx.OPENPI_FAST_MODEL, {"rank": mintx.OPENPI_FAST_LORA_RANK, "user_metadata": None}),
        ("a/b", {"rank": 4, "user_metadata": {"x": "y"}}),
    ]


def test_waiting_for_a_run_ends() -> None:
    service: Any = Service()
    with pytest.raises(TimeoutError):
        mintx.create_openpi_training_client(service, create_timeout_seconds=0.01)
    with pytest.raises(TimeoutError):
        asyncio.run(mintx.create_openpi_training_client_async(service, create_timeout_seconds=0.01))
