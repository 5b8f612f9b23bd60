"""Drawing tokens: the noise, and the distributions that come of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mint.engine.core import SamplingParams
from mint.engine.sampling import BUCKET, CANDIDATES, draw, exponentials
from tests.engine.sampling_support import Sampling, assert_drawn_from, make_prompt

NAMES = ("seed", "sample", "position")


def splitmix(state: int) -> int:
    """Written out again in Python's integers."""
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_noise_is_a_fixed_function() -> None:
    """A seeded sample of today must be the same in every later version."""
    seeds, samples, positions = [0, 1, -1, 2**64 - 1, 12345], [0, 1, 2, 3, 1000], [0, 5, 7, 100_000, 1]
    times = exponentials(seeds, samples, positions, 1, 3)
    for row, (seed, sample, position) in enumerate(zip(seeds, samples, positions, strict=True)):
        state = splitmix((seed + 0x9E3779B97F4A7C15 * (sample + 1)) % 2**64)
        state = splitmix((state + 0x9E3779B97F4A7C15 * (position + 1)) % 2**64)
        for lane in range(3):
            bits = splitmix((state + 0x9E3779B97F4A7C15 * (lane + 1 + 2**32)) % 2**64) >> 16
            assert times[row, lane] == np.float32(-np.log((bits + 0.5) / 2**48))


@pytest.mark.parametrize("varied", ["seed", "sample", "position"])
def test_noise_is_exponential_along_each_counter(varied: str) -> None:
    number = 1_000_000
    counters = {name: list(range(number)) if name == varied else [9] * number for name in NAMES}
    noise = np.exp(-exponentials(*(counters[name] for name in NAMES), 0, 2).astype(np.float64))
    assert (noise > 0).all()
    for lane in noise.T:
        assert_drawn_from(np.histogram(lane, bins=20, range=(0, 1))[0], np.full(20, 1 / 20))
        pairs = np.histogram2d(lane[:-1], lane[1:], bins=4, range=[(0, 1), (0, 1)])[0].ravel()
        assert_drawn_from(pairs, np.full(16, 1 / 16))
    pairs = np.histogram2d(*noise.T, bins=4, range=[(0, 1), (0, 1)])[0].ravel()
    assert_drawn_from(pairs, np.full(16, 1 / 16))


# --- the draw -----------------------------------------------------------------------------------------------


def reference_distribution(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Log-probabilities after temperature, top_k and top_p, in float64, one token at a time."""
    scaled = logits.astype(np.float64) / params.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    ranked = sorted(range(len(logits)), key=lambda token: (-scaled[token], token))
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    total = probabilities[ranked].sum()
    kept, reached = [], 0.0
    for token in ranked:
        kept.append(token)
        reached += probabilities[token] / total
        if reached >= params.top_p:
            break
    result = np.full(len(logits), -np.inf)
    result[kept] = np.log(probabilities[kept] / probabilities[kept].sum())
    return result


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 100},
    {"top_p": 0.5},
    {"top_p": 0.0},
    {"top_p": 0.95, "temperature": 1.7},
    {"top_k": 5, "top_p": 0.6},
    {"top_k": 3, "top_p": 0.9, "temperature": 0.5},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_have_the_reference_distribution(filters: dict[str, float]) -> None:
    """All rows at once beside rows of other parameters; counts, support and log-probabilities."""
    logits = np.random.default_rng(1).normal(scale=1.5, size=12).astype(np.float32)
    params = SamplingParams(max_tokens=1, seed=0, **filters)
    number = 20_000
    neighbours = [SamplingParams(max_tokens=1, seed=0, top_k=2), SamplingParams(1, 0, temperature=0.0)]
    rows = torch.from_numpy(np.tile(logits, (number + 2, 1)))
    tokens, logprobs, _ = draw(rows.clone(), [params] * number + neighbours, range(number + 2), [0] * (number + 2))

    expected = reference_distribution(logits, params)
    assert tokens[-1] == logits.argmax()
    kept = np.isfinite(expected)
    counts = np.bincount(tokens[:number].numpy(), minlength=12)
    assert not counts[~kept].any()
    np.testing.assert_allclose(logprobs[:number].numpy(), expected[tokens[:number].numpy()], rtol=0, atol=2e-6)
    likely = np.exp(expected) * number >= 5
    probabilities = np.exp(expected)[likely]
    assert_drawn_from(counts[likely], probabilities / probabilities.sum())
    assert torch.equal(rows, torch.from_numpy(np.tile(logits, (number + 2, 1))))


WIDE = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.6},
    {"top_k": 40},
    {"top_k": 1300},
    {"top_k": 2999},
    {"top_p": 0.3},
    {"top_p": 0.98, "temperature": 3.0},
    {"top_k": 1500, "top_p": 0.9, "temperature": 3.0},
    {"top_k": 1500, "top_p": 1.0, "temperature": 3.0},
]
"""Some keep more than the candidates that are ranked at first."""


@pytest.mark.parametrize(
    ("vocab", "filters"),
    [*((BUCKET + more, {}) for more in (-1, 0, 1)), *((3000, filters) for filters in WIDE)],
    ids=str,
)
def test_draws_over_many_buckets(vocab: int, filters: dict[str, float]) -> None:
    """Between buckets and within them; the last may be short. Each row's distribution is told whole."""
    logits = np.random.default_rng(2).normal(scale=1.5, size=vocab).astype(np.float32)
    params = SamplingParams(max_tokens=1, seed=5, **filters)
    if params.temperature:
        expected = reference_distribution(logits, params)
    else:
        expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=0).numpy()
    number, counts = 1_000, np.zeros(vocab, np.int64)
    for position in range(8):
        rows = torch.from_numpy(np.tile(logits, (number, 1)))
        tokens, logprobs, distribution = draw(rows, [params] * number, range(number), [position] * number)
        counts += np.bincount(tokens.numpy(), minlength=vocab)
        assert torch.equal(logprobs, distribution.gather(1, tokens[:, None])[:, 0])
        np.testing.assert_allclose(distribution[::500].numpy(), np.tile(expected, (2, 1)), rtol=0, atol=1e-5)
    if params.temperature == 0:
        assert counts[logits.argmax()] == counts.sum()
        return
    chances = np.exp(expected)
    assert not counts[chances == 0].any()
    for grouped in (buckets_of(chances, counts), likely_of(chances, counts)):
        assert_drawn_from(*grouped)


def buckets_of(chances: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and chances of whole buckets: the first heat."""
    starts = np.arange(0, len(chances), BUCKET)
    return likely_of(np.add.reduceat(chances, starts), np.add.reduceat(counts, starts))


def likely_of(chances: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and chances of what is expected five times at least, and of the rest together, if that is."""
    likely = chances * counts.sum() >= 5
    rest = chances[~likely].sum()
    if rest * counts.sum() < 5:
        return counts[likely], chances[likely] / chances[likely].sum()
    return np.append(counts[likely], counts[~likely].sum()), np.append(chances[likely], rest)


def test_neighbours_that_need_a_full_sort_change_nothing() -> None:
    """One row keeps more tokens than are ranked at first; the others come out as without it."""
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 3000)).astype(np.float32))
    few = [SamplingParams(1, 0, top_k=20), SamplingParams(1, 1, top_p=0.05), SamplingParams(1, 2)]
    alone = draw(logits[:3].clone(), few, [0, 1, 2], [0, 0, 0])
    beside = draw(logits.clone(), [*few, SamplingParams(1, 3, top_p=0.9)], [0, 1, 2, 3], [0, 0, 0, 0])
    assert torch.equal(alone.tokens, beside.tokens[:3])
    torch.testing.assert_close(alone.distribution, beside.distribution[:3], rtol=0, atol=1e-6)
    assert int(beside.distribution[3].isfinite().sum()) > CANDIDATES


@pytest.mark.parametrize("top_k", [2, 1024, 1025, 1400])
def test_ties_among_more_than_the_candidates(top_k: int) -> None:
    params = SamplingParams(max_tokens=1, seed=0, top_k=top_k)
    _, _, distribution = draw(torch.zeros(2, 1500), [params] * 2, [0, 1], [0, 0])
    assert torch.equal(distribution.isfinite(), (torch.arange(1500) < top_k).expand(2, -1))


@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_show(params: dict[str, float], value: float) -> None:
    """And spoil no neighbour."""
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(3, 700)).astype(np.float32))
    healthy = draw(logits.clone(), [SamplingParams(1, 0, **params)] * 3, range(3), [0] * 3)
    logits[1, 300] = value
    tokens, logprobs, _ = draw(logits, [SamplingParams(1, 0, **params)] * 3, range(3), [0] * 3)
    assert not torch.isfinite(logprobs[1])
    assert 0 <= tokens[1] < 700
    assert torch.equal(tokens[::2], healthy.tokens[::2])
    assert torch.equal(logprobs[::2], healthy.logprobs[::2])


def test_ties_at_the_edge_of_top_k_keep_exactly_k() -> None:
    number = 2_000
    params = SamplingParams(max_tokens=1, seed=0, top_k=3)
    tokens, logprobs, _ = draw(torch.zeros(number, 10), [params] * number, range(number), [0] * number)
    assert set(tokens.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(logprobs.numpy(), -np.log(3), atol=1e-6)


def test_filtered_samples_carry_the_renormalised_logprobs(sampling: Sampling, qwen_dir: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    prompt = make_prompt(9, 20)
    command = sampling.command("base", prompt, 3, max_tokens=12, temperature=0.8, top_k=20, top_p=0.7)
    for sequence in sampling.driver.one(command).sequences:
        whole = torch.from_numpy(np.concatenate([prompt, sequence.tokens]).astype(np.int64))
        with torch.no_grad():
            logits = base(input_ids=whole[None]).logits[0, len(prompt) - 1 : -1].numpy()
        for row, token, logprob in zip(logits, sequence.tokens, sequence.logprobs, strict=True):
            expected = reference_distribution(row, command.params)[token]
            assert logprob == pytest.approx(expected, abs=2e-5)
