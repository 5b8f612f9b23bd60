"""Drawing tokens from logits, with noise that depends on nothing but (seed, sample, position).

The draw inverts the cumulative distribution at one uniform number per token. That number is a hash, not the
next output of a shared generator, so a seeded sample is the same in any batch, on every run, after a restart.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mint.engine.core import SamplingParams

UInt64Array = npt.NDArray[np.uint64]

GREEDY_BELOW = 1e-5
"""A temperature below which logits would overflow when divided by it; the likeliest token has all the probability."""

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def uniform(seeds: Sequence[int], samples: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each (seed, sample index, position); 48 bits, float64 (B,)."""
    state = np.array([seed % (1 << 64) for seed in seeds], np.uint64)
    for counter in (samples, positions):
        state = _mix(state + GOLDEN_GAMMA * (np.asarray(counter, np.uint64) + np.uint64(1)))
    return (state >> np.uint64(16)).astype(np.float64) / float(1 << 48)


def _mix(z: UInt64Array) -> UInt64Array:
    """The output function of SplitMix64 (Steele, Lea & Flood, 2014, doi 10.1145/2714064.2660195)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(logits: Tensor, params: Sequence[SamplingParams], noise: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """One token per row of float32 (B, V) logits.

    Returns:
        int64 (B,) tokens and float32 (B,) log-probabilities, each of the distribution the token was drawn
        from: after temperature, top_k and top_p. Greedy tokens (temperature 0, or as good as) carry the model's own
        log-probability. Where logits are not finite, neither is the log-probability, and the token means
        nothing.
    """
    is_greedy = [p.temperature < GREEDY_BELOW for p in params]
    temperatures = torch.tensor([1.0 if g else p.temperature for g, p in zip(is_greedy, params, strict=True)])
    temperatures = temperatures.to(logits.device)
    logprobs = torch.log_softmax(_filter(logits / temperatures[:, None], params), dim=1)
    greedy = torch.tensor(is_greedy, device=logits.device)
    tokens = torch.where(greedy, logits.argmax(dim=1), _invert(logprobs, torch.from_numpy(noise)))
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _invert(logprobs: Tensor, noise: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the noise."""
    cumulative = logprobs.double().exp_().cumsum_(dim=1)
    # noise < 1 and the scaling to the rounded total keep the index inside, and off tokens of probability 0
    level = noise.to(logprobs.device)[:, None] * cumulative[:, -1:]
    # where logits are NaN the index is one too far
    return torch.searchsorted(cumulative, level, right=True)[:, 0].clamp_(max=logprobs.shape[1] - 1)


def _filter(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Set to −∞ what top_k or top_p exclude; rows without a filter cost nothing."""
    vocab = logits.shape[1]
    rows = [i for i, p in enumerate(params) if p.temperature >= GREEDY_BELOW and (0 < p.top_k < vocab or p.top_p < 1)]
    for i in rows:
        logits[i] = _filter_row(logits[i], params[i].top_k, params[i].top_p)
    return logits


def _filter_row(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` likeliest, then of those the smallest set whose probability reaches `top_p`.

    Ties are broken by token id (the sort is stable), so exactly k tokens stay.
    """
    ranked, order = torch.sort(logits, descending=True, stable=True)
    if top_k > 0:
        ranked[top_k:] = -torch.inf
    if top_p < 1:
        probabilities = torch.softmax(ranked, dim=0)
        before = probabilities.cumsum(dim=0) - probabilities
        # the first is kept also with top_p 0
        ranked[1:][before[1:] >= top_p] = -torch.inf
    return torch.empty_like(logits).scatter_(0, order, ranked)
