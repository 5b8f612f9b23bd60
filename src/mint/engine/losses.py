"""The token losses, each over the flat targets of a batch.

p is the log-probability of a target under the current weights, q the client's `logprobs` of the policy that drew
it, r = exp(p − q), A the `advantages`, sg what no gradient flows through. A loss returns one term for each target,
without the factor `weights`; the loss of a request is the weighted sum of its terms. All tensors are floats of one
dtype and of shape (P,), or settings that broadcast to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Datums:
    """Which datum each token of a batch belongs to: `of_token` int64 (P,), each from 0 to `count` − 1.

    The tokens of a datum may come in any order, and between those of others.
    """

    of_token: Tensor
    count: int

    def sums(self, x: Tensor) -> Tensor:
        """(P,) → (count,): the sum over each datum's tokens; differentiable."""
        # float64: what order the additions happen in then does not show, and thresholds decide the same every time
        total = torch.zeros(self.count, dtype=torch.float64, device=x.device)
        return total.index_add(0, self.of_token, x.double()).to(x.dtype)

    def spread(self, x: Tensor) -> Tensor:
        """(count,) → (P,): each token gets its datum's entry."""
        return x.index_select(0, self.of_token)


LossFunction: TypeAlias = Callable[[Tensor, Mapping[str, Tensor], Datums], Tensor]


def cross_entropy(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums) -> Tensor:  # noqa: ARG001
    """−p."""
    return -p


def importance_sampling(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums) -> Tensor:  # noqa: ARG001
    """−r·A: the policy gradient of samples drawn by q, corrected for the difference between p and q."""
    return -_ratio(p, inputs) * inputs["advantages"]


def ppo(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums) -> Tensor:  # noqa: ARG001
    """−min(r·A, clip(r, low, high)·A) (Schulman et al., 2017, arXiv 1707.06347, eq. 7)."""
    return clipped_surrogate(_ratio(p, inputs), inputs)


def cispo(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums) -> Tensor:  # noqa: ARG001
    """−sg(clip(r, low, high))·p·A (MiniMax, 2025, arXiv 2506.13585): a clipped token keeps its gradient."""
    return -_clip(_ratio(p, inputs), inputs).detach() * p * inputs["advantages"]


def dro(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums) -> Tensor:  # noqa: ARG001
    """−[p·A − ½·beta·(p − q)²] (Richemond et al., 2024, arXiv 2405.19107), with A in place of reward less value."""
    return 0.5 * inputs["beta"] * (p - inputs["logprobs"]).square() - p * inputs["advantages"]


def gspo(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums) -> Tensor:
    """−min(r·A, clip(r, low, high)·A) with the sequence's ratio (Zheng et al., 2025, arXiv 2507.18071, GSPO-token).

    r = sg(exp(mean(p − q)))·exp(p − sg(p)), the mean over the datum's tokens weighted by `sequence_ratio_mask`. A
    datum whose mask is all zero has the ratio 1.
    """
    mask = inputs["sequence_ratio_mask"]
    size = datums.sums(mask)
    total = datums.sums(mask * (p - inputs["logprobs"]).detach())
    mean = total / torch.where(size > 0, size, torch.ones_like(size))
    return clipped_surrogate(torch.exp(datums.spread(mean)) * torch.exp(p - p.detach()), inputs)


def clipped_surrogate(ratio: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """−min(ratio·A, clip(ratio, low, high)·A)."""
    advantages = inputs["advantages"]
    return -torch.minimum(ratio * advantages, _clip(ratio, inputs) * advantages)


def _ratio(p: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.exp(p - inputs["logprobs"])


def _clip(ratio: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.clamp(ratio, inputs["clip_low_threshold"], inputs["clip_high_threshold"])


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
    "dro": dro,
    "gspo": gspo,
}
