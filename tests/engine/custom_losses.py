"""Custom losses as the SDK uploads them, and what they should compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss
from torch import Tensor

from mint.engine.graph_runner import run_graph
from mint.engine.loss_graph import LossGraph, parse_loss_graph

LossFunction = Callable[..., tuple[Any, dict[str, Any]]]


def encoded(loss: LossFunction, **ranks: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Inputs and graph as they arrive, from the SDK's own tracer; `logprobs` has rank 1 unless told otherwise."""
    handle = trace_loss(loss, {"logprobs": 1, **ranks}, "session")
    request = [each.model_dump() for each in handle.inputs], encode_graph(handle).model_dump()
    inputs, graph = json.loads(json.dumps(request, allow_nan=False))
    return inputs, graph


def uploaded(loss: LossFunction, **ranks: int) -> LossGraph:
    """A checked graph."""
    return parse_loss_graph("loss", *encoded(loss, **ranks))


def assert_computes(graph: LossGraph, loss: LossFunction, logprobs: Tensor, inputs: dict[str, Tensor]) -> None:
    """Value, gradient and metrics are those of the function itself under autograd."""
    theirs, ours = (logprobs.clone().requires_grad_() for _ in range(2))
    expected, metrics = loss(theirs, *(tensor.clone() for tensor in inputs.values()))
    (gradient,) = torch.autograd.grad(expected, theirs)
    assert gradient.any(), "a comparison of zeros"
    value, our_metrics = run_graph(graph, ours, inputs)
    (3 * value).backward()
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(value.detach(), expected.detach(), **close)
    torch.testing.assert_close(ours.grad, 3 * gradient, **close)
    assert our_metrics.keys() == metrics.keys()
    for name, metric in metrics.items():
        torch.testing.assert_close(float(our_metrics[name]), float(torch.as_tensor(metric).detach()), **close)
        assert our_metrics[name].dtype == torch.float64
        assert not our_metrics[name].requires_grad
