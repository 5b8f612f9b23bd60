"""What the programs share."""

from __future__ import annotations

import os
import random
from typing import Any

import tinker
from tinker import types

MODEL = os.environ["MATRIX_MODEL"]
VERSION = tuple(int(part) for part in tinker.__version__.split(".")[:2])
SECONDS = 60


class Absent(Exception):
    """This version of the SDK, or the server, does not have the capability; the message says which and why."""


def service() -> tinker.ServiceClient:
    return tinker.ServiceClient()


def finish(client: tinker.ServiceClient) -> None:
    """End the session, as versions that can do."""
    if hasattr(client, "close"):
        client.close("success")


def run_of(client: tinker.ServiceClient, seed: int = 7) -> tinker.TrainingClient:
    """A new run. Newer versions give a future of it, which must be waited for: the client makes its session meanwhile,
    and 0.38.0 hangs when it makes its REST client at the same time.
    """
    run = client.create_lora_training_client(base_model=MODEL, rank=4, seed=seed)
    return run.result(SECONDS) if hasattr(run, "result") else run


def tokens_of(seed: int, length: int = 16) -> list[int]:
    return [random.Random(seed + place).randrange(5, 500) for place in range(0, 100 * length, 100)]


def floats(values: list[float]) -> types.TensorData:
    return types.TensorData(data=values, dtype="float32", shape=[len(values)])


def datum(tokens: list[int], **inputs: list[float]) -> types.Datum:
    """Predict each next token."""
    targets = types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])
    others = {name: floats(values) for name, values in inputs.items()}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": targets, **others}
    )


def batch(seed: int, size: int = 3) -> list[types.Datum]:
    return [
        datum(tokens := tokens_of(1000 * seed + index, 12 + index), weights=[1.0] * (len(tokens) - 1))
        for index in range(size)
    ]


def logprobs(output: Any) -> list[list[float]]:
    return [list(each["logprobs"].data) for each in output.loss_fn_outputs]


def loss_of(output: Any) -> float:
    return float(output.metrics["loss:sum"])


def step(run: tinker.TrainingClient, rate: float = 2e-3) -> None:
    run.optim_step(types.AdamParams(learning_rate=rate)).result(SECONDS)


def close(left: float, right: float, tolerance: float = 1e-4) -> None:
    assert abs(left - right) <= tolerance * max(1.0, abs(right)), (left, right)
