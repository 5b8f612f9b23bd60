"""The losses, each over the flat tokens of one request.

p is the log-probability of the target under the current weights, q the client's `logprobs` of the policy that
drew it, r = exp(p − q), A the `advantages`, w the `weights`. A loss returns one term per token; the loss of a
request is their sum. All tensors are float32 (T,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

LossFunction: TypeAlias = Callable[[Tensor, Mapping[str, Tensor], Mapping[str, float]], Tensor]


def cross_entropy(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> Tensor:  # noqa: ARG001
    """−w·p."""
    return -inputs["weights"] * p


def importance_sampling(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> Tensor:  # noqa: ARG001
    """−w·r·A: the policy gradient of samples drawn by q, corrected for the difference between p and q."""
    return -inputs["weights"] * torch.exp(p - inputs["logprobs"]) * inputs["advantages"]


def ppo(p: Tensor, inputs: Mapping[str, Tensor], config: Mapping[str, float]) -> Tensor:
    """−w·min(r·A, clip(r, low, high)·A) (Schulman et al., 2017, arXiv 1707.06347, eq. 7)."""
    ratio, advantages = torch.exp(p - inputs["logprobs"]), inputs["advantages"]
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -inputs["weights"] * torch.minimum(ratio * advantages, clipped * advantages)


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
}
