"""Training: every loss that the SDK's version names, against its formula, and steps that lower the loss."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable

import tinker
from tinker import types

from .common import SECONDS, batch, close, datum, finish, logprobs, loss_of, run_of, service, step, tokens_of

ADVANTAGES = (1.0, -0.5, 2.0)
OFFSET = 0.1
"""How much more likely the sampler is said to have found each token than the model does: ratios of exp(−0.1)."""

RATIO = math.exp(-OFFSET)

Loss = Callable[[float, float], float]
PER_TOKEN: dict[str, Loss] = {
    "importance_sampling": lambda p, a: -RATIO * a,
    "ppo": lambda p, a: -min(RATIO * a, min(max(RATIO, 0.8), 1.2) * a),
    "cispo": lambda p, a: -RATIO * p * a,
    "dro": lambda p, a: -(p * a - 0.5 * 0.05 * OFFSET**2),
    "gspo": lambda p, a: -RATIO * a,
}
ELSEWHERE = {"cross_entropy", "custom"}
"""The first is tested below, the other by a program of its own."""

UNPUBLISHED = {"stable_reinforce"}


def main() -> None:
    client = service()
    run = run_of(client)
    known = set(typing.get_args(types.LossFnType))
    assert known <= {*PER_TOKEN, *ELSEWHERE, *UNPUBLISHED}, known
    _cross_entropy(run)
    for name in sorted(known & set(PER_TOKEN)):
        _policy_loss(run, name)
    _many_datums(run)
    finish(client)


def _cross_entropy(run: tinker.TrainingClient) -> None:
    data = batch(1)
    before = run.forward(data, "cross_entropy").result(SECONDS)
    close(loss_of(before), -sum(map(sum, logprobs(before))))
    losses = []
    for _ in range(3):
        losses.append(loss_of(run.forward_backward(data, "cross_entropy").result(SECONDS)))
        step(run)
    close(losses[0], loss_of(before))
    assert losses[2] < losses[1] < losses[0], losses


def _policy_loss(run: tinker.TrainingClient, name: str) -> None:
    sequences = [tokens_of(50 + index) for index in range(len(ADVANTAGES))]
    found = logprobs(run.forward([datum(tokens) for tokens in sequences], "cross_entropy").result(SECONDS))
    data = [
        datum(
            tokens,
            logprobs=[value + OFFSET for value in values],
            advantages=[advantage] * len(values),
            **({"sequence_ratio_mask": [1.0] * len(values)} if name == "gspo" else {}),
        )
        for tokens, values, advantage in zip(sequences, found, ADVANTAGES, strict=True)
    ]
    output = run.forward_backward(data, name, **_settings(name)).result(SECONDS)
    pairs = zip(found, ADVANTAGES, strict=True)
    close(loss_of(output), sum(PER_TOKEN[name](p, advantage) for values, advantage in pairs for p in values), 1e-3)
    step(run)


def _settings(name: str) -> dict[str, dict[str, float]]:
    return {"loss_fn_config": {"beta": 0.05}} if name == "dro" else {}


def _many_datums(run: tinker.TrainingClient) -> None:
    """More than one request of the oldest version, and of the newest, can hold: the SDK cuts them, in its order."""
    data = [datum(tokens_of(index, 4), weights=[1.0] * 3) for index in range(1100)]
    output = run.forward_backward(data, "cross_entropy").result(SECONDS)
    assert len(output.loss_fn_outputs) == len(data)
    close(loss_of(output), -sum(map(sum, logprobs(output))), 1e-3)
