"""Losses of one's own: as a Python function over log-probabilities, and uploaded where the SDK can do that."""

from __future__ import annotations

from typing import Any

import tinker

from .common import SECONDS, batch, close, finish, logprobs, loss_of, run_of, service, step


def main() -> None:
    client = service()
    expected = _trained(client, lambda run, data: run.forward_backward(data, "cross_entropy"))
    found = _trained(client, lambda run, data: run.forward_backward_custom(data, _negative_likelihood))
    _same(found, expected)
    if hasattr(client, "create_custom_loss"):
        _same(_trained(client, _uploaded(client)), expected)
    finish(client)


def _trained(client: tinker.ServiceClient, backward: Any) -> list[list[float]]:
    """Log-probabilities after a step with a loss."""
    run, data = run_of(client), batch(2)
    backward(run, data).result(SECONDS)
    step(run)
    return logprobs(run.forward(data, "cross_entropy").result(SECONDS))


def _negative_likelihood(_data: list[Any], values: list[Any]) -> tuple[Any, dict[str, float]]:
    loss = -sum(each.sum() for each in values)
    return loss, {"likelihood": float(-loss)}


def _uploaded(client: tinker.ServiceClient) -> Any:
    def negative_likelihood(logprobs: Any, weights: Any) -> tuple[Any, dict[str, Any]]:
        loss = -(logprobs * weights).sum()
        return loss, {"custom/likelihood:sum": -loss}

    handle = client.create_custom_loss(negative_likelihood, {"logprobs": 1, "weights": 1}).result(SECONDS)

    def backward(run: tinker.TrainingClient, data: list[Any]) -> Any:
        future = run.forward_backward_custom(data, handle)
        output = future.result(SECONDS)
        close(output.metrics["custom/likelihood:sum"], -loss_of(output))
        return future

    return backward


def _same(found: list[list[float]], expected: list[list[float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            close(left, right, 1e-3)
