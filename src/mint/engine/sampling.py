"""Drawing tokens from logits, with noise that depends on nothing but (seed, sample, position).

A token is drawn by a race: token i arrives after an exponential time of rate p_i, and the first one wins, which is i
with probability p_i. The race is run in two heats, first between buckets of neighbouring tokens, then within the bucket
that won, so that a draw takes some 2·√V random numbers. These are hashes, not the next outputs of a shared generator,
so a seeded sample is the same in any batch, on every run, after a restart. A race comes out otherwise only if two times
are as close as rounding; the inverse of a cumulative distribution would have as many such borders as there are tokens.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from mint.engine.core import FloatArray, Int32Array, SamplingParams

UInt64Array = npt.NDArray[np.uint64]

GREEDY_BELOW = 1e-5
"""A temperature below which logits would overflow when divided by it; the likeliest token has all the probability."""

BUCKET = 256
"""Neighbouring tokens that race as one in the first heat."""

CANDIDATES = 1024
"""Of the likeliest tokens that are ranked to find where top_p ends; all are, where these do not reach it."""

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Drawn(NamedTuple):
    """Tokens int64 (B,), their log-probabilities float32 (B,), and those of all tokens (B, V)."""

    tokens: Tensor
    logprobs: Tensor
    distribution: Tensor


def exponentials(
    seeds: Sequence[int], samples: Sequence[int], positions: Sequence[int], heat: int, count: int
) -> FloatArray:
    """Exponential times of rate 1, float32 (B, count), for each (seed, sample index, position) and a heat."""
    state = np.array([seed % (1 << 64) for seed in seeds], np.uint64)
    for counter in (samples, positions):
        state = _mix(state + GOLDEN_GAMMA * (np.asarray(counter, np.uint64) + np.uint64(1)))
    lanes = np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(heat) << np.uint64(32))
    bits = _mix(state[:, None] + GOLDEN_GAMMA * lanes) >> np.uint64(16)
    # from the middle of its interval, so never 0 and never 1
    return -np.log((bits.astype(np.float64) + 0.5) / float(1 << 48)).astype(np.float32)


def _mix(z: UInt64Array) -> UInt64Array:
    """The output function of SplitMix64 (Steele, Lea & Flood, 2014, doi 10.1145/2714064.2660195)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(logits: Tensor, params: Sequence[SamplingParams], samples: Sequence[int], positions: Sequence[int]) -> Drawn:
    """One token per row of float32 (B, V) logits, which may be overwritten.

    Args:
        samples: index of each row's sample within its request.
        positions: tokens that each sample has drawn before.

    Returns:
        tokens and log-probabilities of the distribution they were drawn from: after temperature, top_k and top_p.
        Greedy tokens (temperature 0, or as good as) carry the model's own log-probability. Where logits are not finite,
        neither is the log-probability, and the token means nothing.
    """
    greedy = [row for row, p in enumerate(params) if p.temperature < GREEDY_BELOW]
    if any(p.temperature != 1.0 for p in params):
        temperatures = [1.0 if p.temperature < GREEDY_BELOW else p.temperature for p in params]
        logits = logits / torch.tensor(temperatures, device=logits.device)[:, None]
    logprobs = torch.log_softmax(_filter(logits, params), dim=1)
    if len(greedy) == len(params):
        tokens = logprobs.argmax(dim=1)
    else:
        tokens = pick(logprobs.exp(), [p.seed for p in params], samples, positions)
        if greedy:
            tokens[greedy] = logprobs[greedy].argmax(dim=1)
    return Drawn(tokens, logprobs.gather(1, tokens[:, None])[:, 0], logprobs)


def pick(probabilities: Tensor, seeds: Sequence[int], samples: Sequence[int], positions: Sequence[int]) -> Tensor:
    """A token for each row of (B, V) probabilities, int64 (B,)."""
    count, vocab = probabilities.shape
    whole = vocab // BUCKET * BUCKET
    masses = probabilities[:, :whole].view(count, -1, BUCKET).sum(dim=2)
    if whole < vocab:
        masses = torch.cat([masses, probabilities[:, whole:].sum(dim=1, keepdim=True)], dim=1)
    times = torch.from_numpy(exponentials(seeds, samples, positions, 0, masses.shape[1])).to(probabilities.device)
    buckets = (masses / times).argmax(dim=1)
    tokens = buckets[:, None] * BUCKET + torch.arange(BUCKET, device=probabilities.device)
    inside = probabilities.gather(1, tokens.clamp(max=vocab - 1)).masked_fill_(tokens >= vocab, 0)
    times = torch.from_numpy(exponentials(seeds, samples, positions, 1, BUCKET)).to(probabilities.device)
    return tokens.gather(1, (inside / times).argmax(dim=1, keepdim=True))[:, 0].clamp_(max=vocab - 1)


def top_of(logprobs: Tensor, count: int) -> tuple[Int32Array, FloatArray]:
    """The `count` likeliest of each row of (B, V), likeliest first: tokens and log-probabilities (B, count).

    Where a filter left fewer, −1 and −∞ fill up.
    """
    values, tokens = logprobs.topk(min(count, logprobs.shape[1]), dim=1)
    tokens.masked_fill_(values == -torch.inf, -1)
    missing = (0, count - tokens.shape[1])
    return pad(tokens, missing, value=-1).int().cpu().numpy(), pad(values, missing, value=-torch.inf).cpu().numpy()


# --- top_k and top_p ----------------------------------------------------------------------------------------


def _filter(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Set to −∞ what top_k or top_p exclude, in place; rows without a filter cost nothing."""
    vocab = logits.shape[1]
    rows = [i for i, p in enumerate(params) if p.temperature >= GREEDY_BELOW and (0 < p.top_k < vocab or p.top_p < 1)]
    if rows:
        top_k = torch.tensor([params[i].top_k if params[i].top_k > 0 else vocab for i in rows], device=logits.device)
        top_p = torch.tensor([params[i].top_p for i in rows], dtype=torch.float32, device=logits.device)
        index = torch.tensor(rows, device=logits.device)
        logits[index] = _keep_likeliest(logits[index], top_k, top_p)
    return logits


def _keep_likeliest(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Of each row the `top_k` likeliest, then of those the smallest set whose probability reaches `top_p`."""
    ranked = logits.topk(min(CANDIDATES, logits.shape[1]), dim=1).values
    kept, is_certain = _num_kept(logits, ranked, top_k, top_p)
    if not is_certain:
        ranked = logits.sort(dim=1, descending=True).values
        kept, _ = _num_kept(logits, ranked, top_k, top_p)
    lowest = ranked.gather(1, kept[:, None] - 1)
    is_tied = logits == lowest
    # ties are broken by token id, so that exactly so many stay
    room = kept[:, None] - (logits > lowest).sum(dim=1, keepdim=True)
    stays = (logits > lowest) | (is_tied & (is_tied.cumsum(dim=1) <= room))
    return logits.masked_fill_(~stays, -torch.inf)


def _num_kept(logits: Tensor, ranked: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, bool]:
    """How many of each row stay, int64 (n,), and whether the ranked ones (n, c) suffice to tell."""
    width = ranked.shape[1]
    place = torch.arange(width, device=ranked.device)
    weights = (ranked - ranked[:, :1]).exp()
    within = weights * (place < top_k[:, None])
    # the total over top_k tokens, or over all
    rest = (logits - ranked[:, :1]).exp().sum(dim=1)
    total = torch.where(top_k <= width, within.sum(dim=1), rest)
    before = (within.cumsum(dim=1) - within) / total[:, None]
    wanted = (before < top_p[:, None]) & (place < top_k[:, None])
    wanted[:, 0] = True  # also with top_p 0
    kept = wanted.sum(dim=1)
    vocab = logits.shape[1]
    # where the last candidate is still wanted, so may be tokens that are not among them
    is_open = ((kept == width) & (top_k > width)) | ((top_k > width) & (top_k < vocab))
    return kept, width == vocab or not bool(is_open.any())
