"""Any rollout correction against a loop over datums and tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint.engine.corrections import batch_scale, corrected_importance_sampling, rollout_weights
from mint.engine.losses import Datums
from mint.engine.rollout_correction import REJECTIONS, parse_rollout_correction
from tests.engine.rollout_reference import expected_terms

BOUND = 1e-12


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    number = st.floats(1.05, 4).map(lambda value: round(value, 3))
    bound = st.floats(0.05, 4).map(lambda value: round(value, 3))
    pair = st.tuples(st.floats(0.2, 0.95), number).map(lambda bounds: f"{bounds[0]:.3f}_{bounds[1]}")
    config: dict[str, Any] = {
        "rollout_is": draw(st.sampled_from([None, "token", "sequence"])),
        "rollout_is_threshold": draw(number | number.map(str) | pair),
        "rollout_is_batch_normalize": draw(st.booleans()),
        "loss_type": draw(st.sampled_from(["reinforce", "ppo_clip"])),
    }
    names = draw(st.lists(st.sampled_from(sorted(REJECTIONS)), unique=True, max_size=3))
    thresholds = [draw(number.map(str) | pair) if name.endswith("k1") else str(draw(bound)) for name in names]
    if names:
        config |= {"rollout_rs": ",".join(names), "rollout_rs_threshold": ",".join(thresholds)}
    return config


def random_batch(seed: int, lengths: list[int]) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    rng = np.random.default_rng(seed)
    of_token = rng.permutation(np.repeat(np.arange(len(lengths)), lengths)).tolist()
    count = len(of_token)
    q = rng.normal(-2, 1, count)
    low = rng.uniform(0.5, 1, count)
    inputs = {
        "logprobs": q,
        "advantages": rng.normal(size=count),
        "weights": rng.normal(size=count) * rng.integers(0, 2, count),
        "mask": rng.integers(0, 4, count) > 0,
        "clip_low_threshold": low,
        "clip_high_threshold": low + rng.uniform(0, 1, count),
    }
    p = torch.from_numpy(q + rng.normal(0, 1, count)).requires_grad_()
    return p, {name: torch.from_numpy(np.asarray(value, np.float64)) for name, value in inputs.items()}, of_token


def mean_weight(config: dict[str, Any], weights: list[float], mask: list[float], of_token: list[int]) -> float:
    if config["rollout_is"] == "token":
        counted = [weight for weight, m in zip(weights, mask, strict=True) if m]
    else:
        counted = list({d: w for d, w, m in zip(of_token, weights, mask, strict=True) if m}.values())
    return math.fsum(counted) / len(counted) if counted else 0.0


@settings(deadline=None, max_examples=300)
@given(
    config=configurations(),
    seed=st.integers(0, 1 << 32),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_any_configuration(config: dict[str, Any], seed: int, lengths: list[int]) -> None:
    parsed = parse_rollout_correction(config)
    p, inputs, of_token = random_batch(seed, lengths)
    datums = Datums(torch.tensor(of_token), len(lengths))
    _, weights, _ = expected_terms(config, p, inputs, of_token, 1.0)
    counted = (inputs["mask"] != 0).double()

    raw = rollout_weights(p, inputs, datums, parsed)
    torch.testing.assert_close(raw, torch.tensor(weights, dtype=torch.float64), rtol=BOUND, atol=BOUND)
    scale = batch_scale(raw, counted, datums, parsed)
    mean = mean_weight(config, weights, inputs["mask"].tolist(), of_token)
    normalises = config["rollout_is_batch_normalize"] and config["rollout_is"] and mean > 1e-8
    assert scale == pytest.approx(1 / mean if normalises else 1.0, rel=1e-12)

    result = corrected_importance_sampling(p, inputs, datums, parsed, scale)
    terms, _, kept = expected_terms(config, p, inputs, of_token, scale)
    assert result.kept.tolist() == kept
    assert torch.equal(result.counted, counted)
    torch.testing.assert_close(result.weight, torch.where(counted > 0, raw * scale, 1.0), rtol=BOUND, atol=BOUND)
    expected = torch.stack(terms)
    torch.testing.assert_close(result.terms, expected, rtol=BOUND, atol=BOUND)
    (ours,) = torch.autograd.grad((result.terms * inputs["weights"]).sum(), p)
    (theirs,) = torch.autograd.grad((expected * inputs["weights"]).sum() + 0 * p.sum(), p)
    torch.testing.assert_close(ours, theirs, rtol=BOUND, atol=BOUND)


@settings(deadline=None)
@given(
    config=configurations(),
    seed=st.integers(0, 1 << 32),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_per_token_means_that_tokens_can_be_split_up(config: dict[str, Any], seed: int, lengths: list[int]) -> None:
    parsed = parse_rollout_correction(config)
    assume(parsed.per_token)
    p, inputs, of_token = random_batch(seed, lengths)
    whole = corrected_importance_sampling(p, inputs, Datums(torch.tensor(of_token), len(lengths)), parsed)
    for t in range(len(p)):
        one = {name: value[t : t + 1] for name, value in inputs.items()}
        datums = Datums(torch.tensor([of_token[t]]), len(lengths))
        alone = corrected_importance_sampling(p[t : t + 1], one, datums, parsed)
        torch.testing.assert_close(alone.terms, whole.terms[t : t + 1], rtol=BOUND, atol=BOUND)
        torch.testing.assert_close(alone.weight, whole.weight[t : t + 1], rtol=BOUND, atol=BOUND)
        assert torch.equal(alone.kept, whole.kept[t : t + 1])
