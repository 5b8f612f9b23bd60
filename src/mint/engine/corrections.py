"""Rollout correction, computed: weights and rejection of importance sampling's tokens.

Formulas follow verl's public documentation of rollout correction, in its mode without a third policy; the
configuration is `mint.engine.rollout_correction`. All tensors are (P,), floats of one dtype; `datums` tells the
sequences apart.

Only response tokens are looked at: those whose `mask` is not zero, or where there is none those of
`response_tokens`. Any other token has the weight 1, is kept, and takes no part in what is summed over its sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mint.engine.loss_specs import CLIP
from mint.engine.losses import Datums, clipped_surrogate
from mint.engine.rollout_correction import Aggregate, Estimator, Rejection, RolloutCorrection, response_tokens

LARGEST_LOG_RATIO = 20.0
"""Ratios beyond exp(±20) are taken for that, so that none overflows."""

SMALLEST_MEAN = 1e-8
"""Weights that have a smaller mean are not divided by it."""

ESTIMATORS: dict[Estimator, Callable[[Tensor], Tensor]] = {
    "k1": torch.neg,
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    # ρ − 1 − log ρ, without the loss of digits near ρ = 1
    "k3": lambda log_ratio: torch.expm1(log_ratio) - log_ratio,
}


@dataclass(frozen=True)
class Corrected:
    """The corrected importance sampling of a batch's tokens, each tensor (P,).

    Attributes:
        terms: of the loss, without the factor `weights`.
        weight: importance weights; no gradient flows through them.
        kept: 1 where the token stays in the loss, 0 where it is rejected.
        counted: 1 for response tokens.
    """

    terms: Tensor
    weight: Tensor
    kept: Tensor
    counted: Tensor


def rollout_weights(p: Tensor, inputs: Mapping[str, Tensor], datums: Datums, config: RolloutCorrection) -> Tensor:
    """The importance weight of each token (P,), before it is normalised over the batch.

    ρ, or for "sequence" the product of the sequence's, truncated at `high`, or with `low` set to zero outside both.
    No gradient flows through it.
    """
    counted = _counted(p, inputs)
    if config.rollout_is is None:
        return torch.ones_like(counted)
    log_ratio = _log_ratio(p.detach(), inputs)
    if config.rollout_is == "sequence":
        of_sequence = datums.sums(log_ratio * counted).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        log_ratio = datums.spread(of_sequence)
    ratio = torch.exp(log_ratio)
    if config.low is None:
        weight = ratio.clamp(max=config.high)
    else:
        weight = ratio * ((ratio >= config.low) & (ratio <= config.high))
    return _where_counted(counted, weight)


def batch_scale(weights: Tensor, counted: Tensor, datums: Datums, config: RolloutCorrection) -> float:
    """The factor that brings the mean of `weights` over the batch to 1; 1.0 where that is not asked for.

    The mean is over tokens, or for "sequence" over sequences, whatever their length. Rejected ones count too.
    """
    if not config.rollout_is_batch_normalize or not counted.any():
        return 1.0
    values, sizes = (weights * counted).double(), counted.double()
    if config.rollout_is == "sequence":
        sizes = datums.sums(sizes)
        values = datums.sums(values) / sizes.clamp(min=1)
        sizes = (sizes > 0).double()
    mean = float(values.sum() / sizes.sum())
    return 1 / mean if mean > SMALLEST_MEAN else 1.0


def corrected_importance_sampling(
    p: Tensor,
    inputs: Mapping[str, Tensor],
    datums: Datums,
    config: RolloutCorrection,
    weight_scale: float = 1.0,
) -> Corrected:
    """importance_sampling of a run that corrects its rollouts.

    "reinforce": −sg(weight)·p·A over kept tokens. "ppo_clip": −min(ρ·A, clip(ρ, low, high)·A) over kept tokens, by
    the clip thresholds of `inputs`; the ratio is in the loss already, so weights do not multiply it.

    Args:
        weight_scale: what `batch_scale` says of the whole batch.
    """
    counted = _counted(p, inputs)
    weight = _where_counted(counted, weight_scale * rollout_weights(p, inputs, datums, config))
    kept = _kept(_log_ratio(p.detach(), inputs), counted, datums, config)
    if config.loss_type == "reinforce":
        terms = -weight * p * inputs["advantages"]
    else:
        thresholds = {name: inputs.get(name, p.new_tensor(value)) for name, value in CLIP.items()}
        terms = clipped_surrogate(torch.exp(_log_ratio(p, inputs)), {**inputs, **thresholds})
    return Corrected(kept * terms, weight, kept, counted)


def _log_ratio(p: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return (p - inputs["logprobs"]).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _counted(p: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    mask = inputs.get("mask")
    if mask is not None:
        return (mask != 0).to(p.dtype)
    counted: Tensor = response_tokens(inputs["weights"], inputs["logprobs"], inputs["advantages"])
    return counted.to(p.dtype)


def _where_counted(counted: Tensor, x: Tensor) -> Tensor:
    """`x` for response tokens, 1 for others."""
    return torch.where(counted > 0, x, torch.ones_like(x))


def _kept(log_ratio: Tensor, counted: Tensor, datums: Datums, config: RolloutCorrection) -> Tensor:
    """1 for tokens that pass every rejection, as do those that are not counted, else 0."""
    kept = torch.ones_like(counted)
    for rejection in config.rejections:
        kept = kept * _inside(log_ratio, counted, datums, rejection)
    return _where_counted(counted, kept)


def _inside(log_ratio: Tensor, counted: Tensor, datums: Datums, rejection: Rejection) -> Tensor:
    estimate = AGGREGATES[rejection.aggregate](ESTIMATORS[rejection.estimator](log_ratio), counted, datums)
    return (estimate >= rejection.low) & (estimate <= rejection.high)


def _sequence_sum(values: Tensor, counted: Tensor, datums: Datums) -> Tensor:
    return datums.spread(datums.sums(values * counted))


def _sequence_mean(values: Tensor, counted: Tensor, datums: Datums) -> Tensor:
    return datums.spread(datums.sums(values * counted) / datums.sums(counted).clamp(min=1))


def _sequence_max(values: Tensor, counted: Tensor, datums: Datums) -> Tensor:
    """Of values that are not negative."""
    largest = values.new_zeros(datums.count)
    return datums.spread(largest.scatter_reduce(0, datums.of_token, values * counted, "amax"))


AGGREGATES: dict[Aggregate, Callable[[Tensor, Tensor, Datums], Tensor]] = {
    "token": lambda values, _counted, _datums: values,
    "seq_sum": _sequence_sum,
    "seq_mean": _sequence_mean,
    "seq_max": _sequence_max,
}
