"""Short names for what the SDK's programs do."""

from __future__ import annotations

from typing import Any

import numpy as np

import mint
from mint import types
from mint.tiny import NAME

SECONDS = 60
"""Nothing here takes that long; what hangs fails its test."""


def run_of(service: mint.ServiceClient, seed: int = 7, rank: int = 4) -> mint.TrainingClient:
    return service.create_lora_training_client(NAME, rank=rank, seed=seed).result(SECONDS)


def tokens_of(seed: int, length: int = 24) -> list[int]:
    return np.random.default_rng(seed).integers(5, 500, length).tolist()


def datum(tokens: list[int], **inputs: Any) -> types.Datum:
    """Predict each next token."""
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:], **inputs}
    )


def batch(seed: int, size: int = 4) -> list[types.Datum]:
    return [datum(tokens_of(100 * seed + index, 12 + index)) for index in range(size)]


def backward(run: mint.TrainingClient, data: list[types.Datum], loss: Any = "cross_entropy") -> Any:
    return run.forward_backward(data, loss).result(SECONDS)


def step(run: mint.TrainingClient, rate: float = 1e-2) -> dict[str, float]:
    metrics: dict[str, float] = run.optim_step(types.AdamParams(learning_rate=rate)).result(SECONDS).metrics
    return metrics


def logprobs_of(output: Any) -> list[list[float]]:
    return [datum["logprobs"].to_numpy().tolist() for datum in output.loss_fn_outputs]


def train(run: mint.TrainingClient, first: int, steps: int) -> list[float]:
    """The loss curve of some steps; step `n` always sees batch `n`."""
    curve = []
    for number in range(first, first + steps):
        losses = run.forward_backward(batch(number), "cross_entropy")
        stepped = run.optim_step(types.AdamParams(learning_rate=1e-2))
        curve.append(losses.result(SECONDS).metrics["loss:sum"])
        stepped.result(SECONDS)
    return curve
