"""Every loss and its gradient against a loop over datums and tokens that is written from the formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint.engine.loss_specs import LOSS_SPECS
from mint.engine.losses import LOSSES, Datums

Inputs: TypeAlias = Mapping[str, Tensor]
BOUND = 1e-12


def clip(ratio: Tensor, inputs: Inputs, t: int) -> Tensor:
    low, high = inputs["clip_low_threshold"][t], inputs["clip_high_threshold"][t]
    return low if ratio < low else high if ratio > high else ratio


def surrogate(ratio: Tensor, inputs: Inputs, t: int) -> Tensor:
    a = inputs["advantages"][t]
    one, other = ratio * a, clip(ratio, inputs, t) * a
    return -one if one <= other else -other


def mean_log_ratio(p: Tensor, inputs: Inputs, members: list[int]) -> Tensor:
    total, size = torch.zeros((), dtype=torch.float64), 0.0
    for t in members:
        total = total + inputs["sequence_ratio_mask"][t] * (p[t] - inputs["logprobs"][t])
        size += float(inputs["sequence_ratio_mask"][t])
    return total / size if size else torch.zeros((), dtype=torch.float64)


def reference(loss_fn: str, p: Tensor, inputs: Inputs, of_token: list[int], t: int) -> Tensor:
    """One token's term."""
    if loss_fn == "cross_entropy":
        return -p[t]
    a, difference = inputs["advantages"][t], p[t] - inputs["logprobs"][t]
    ratio = torch.exp(difference)
    if loss_fn == "importance_sampling":
        return -ratio * a
    if loss_fn == "ppo":
        return surrogate(ratio, inputs, t)
    if loss_fn == "cispo":
        return -float(clip(ratio.detach(), inputs, t)) * p[t] * a
    if loss_fn == "dro":
        return -(p[t] * a - 0.5 * inputs["beta"][t] * difference**2)
    assert loss_fn == "gspo"
    members = [other for other, datum in enumerate(of_token) if datum == of_token[t]]
    ratio = math.exp(float(mean_log_ratio(p.detach(), inputs, members))) * torch.exp(p[t] - p[t].item())
    return surrogate(ratio, inputs, t)


def batch(seed: int, lengths: list[int], spread: float = 0.5) -> tuple[Tensor, dict[str, Tensor], list[int]]:
    """Log-probabilities, inputs of every loss with thresholds for each token, and the datum of each token, shuffled."""
    rng = np.random.default_rng(seed)
    of_token = rng.permutation(np.repeat(np.arange(len(lengths)), lengths)).tolist()
    count = len(of_token)
    q = rng.normal(-2, 1, count)
    low = rng.uniform(0, 1.1, count)
    inputs = {
        "logprobs": q,
        "advantages": rng.normal(size=count) * rng.integers(0, 2, count),
        "weights": rng.normal(size=count),
        "sequence_ratio_mask": rng.integers(0, 2, count) * rng.choice([1.0, 0.5], count),
        "clip_low_threshold": low,
        "clip_high_threshold": low + rng.uniform(0, 1, count),
        "beta": rng.uniform(0, 1, count),
    }
    p = torch.from_numpy(q + rng.normal(0, spread, count)).requires_grad_()
    return p, {name: torch.from_numpy(value) for name, value in inputs.items()}, of_token


def datums_of(of_token: list[int], count: int) -> Datums:
    return Datums(torch.tensor(of_token, dtype=torch.int64), count)


@settings(deadline=None)
@given(
    loss_fn=st.sampled_from(sorted(LOSSES)),
    seed=st.integers(0, 1 << 32),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_terms_and_gradients(loss_fn: str, seed: int, lengths: list[int]) -> None:
    p, inputs, of_token = batch(seed, lengths)
    terms = LOSSES[loss_fn](p, inputs, datums_of(of_token, len(lengths)))
    expected = torch.stack([reference(loss_fn, p, inputs, of_token, t) for t in range(len(p))])
    assert terms.shape == p.shape
    torch.testing.assert_close(terms, expected, rtol=BOUND, atol=BOUND)
    # weights as the trainer multiplies them, so that each token's gradient can be told from the others'
    (ours,) = torch.autograd.grad((terms * inputs["weights"]).sum(), p)
    nothing = 0 * p.sum()  # a batch of clipped tokens has no gradient at all
    (theirs,) = torch.autograd.grad((expected * inputs["weights"]).sum() + nothing, p)
    torch.testing.assert_close(ours, theirs, rtol=BOUND, atol=BOUND)


@settings(deadline=None)
@given(
    loss_fn=st.sampled_from(sorted(LOSSES)),
    seed=st.integers(0, 1 << 32),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_the_order_of_tokens_is_no_matter(loss_fn: str, seed: int, lengths: list[int]) -> None:
    p, inputs, of_token = batch(seed, lengths)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(p)))
    terms = LOSSES[loss_fn](p, inputs, datums_of(of_token, len(lengths)))
    moved = {name: value[order] for name, value in inputs.items()}
    again = LOSSES[loss_fn](p[order], moved, datums_of([of_token[t] for t in order], len(lengths)))
    torch.testing.assert_close(again, terms[order], rtol=BOUND, atol=BOUND)


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), loss_fn=st.sampled_from(sorted(n for n in LOSSES if LOSS_SPECS[n].per_token)))
def test_a_token_that_is_computed_alone_has_the_same_gradient(seed: int, loss_fn: str) -> None:
    p, inputs, of_token = batch(seed, [3, 4])
    terms = LOSSES[loss_fn](p, inputs, datums_of(of_token, 2))
    (together,) = torch.autograd.grad(terms.sum(), p)
    for t in range(len(p)):
        one = p.detach()[t : t + 1].requires_grad_()
        alone = LOSSES[loss_fn](one, {n: v[t : t + 1] for n, v in inputs.items()}, datums_of([of_token[t]], 2))
        (gradient,) = torch.autograd.grad(alone.sum(), one)
        torch.testing.assert_close(alone, terms[t : t + 1], rtol=BOUND, atol=BOUND)
        torch.testing.assert_close(gradient, together[t : t + 1], rtol=BOUND, atol=BOUND)


@pytest.mark.parametrize("loss_fn", [n for n in LOSSES if not LOSS_SPECS[n].per_token])
def test_what_is_not_said_to_be_per_token_is_not(loss_fn: str) -> None:
    p, inputs, of_token = batch(0, [6])
    inputs |= {name: torch.ones(6, dtype=torch.float64) for name in ("sequence_ratio_mask", "advantages")}
    terms = LOSSES[loss_fn](p, inputs, datums_of(of_token, 1))
    alone = LOSSES[loss_fn](p[:1], {n: v[:1] for n, v in inputs.items()}, datums_of([0], 1))
    assert not torch.allclose(alone, terms[:1])


@pytest.mark.parametrize("loss_fn", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_settings_may_be_scalars(loss_fn: str, dtype: torch.dtype) -> None:
    p, inputs, of_token = batch(1, [4, 5])
    scalars = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2, "beta": 0.05}
    each = {name: torch.full((len(p),), value, dtype=dtype) for name, value in scalars.items()}
    one = {name: torch.tensor(value, dtype=dtype) for name, value in scalars.items()}
    inputs = {name: value.to(dtype) for name, value in inputs.items()}
    datums = datums_of(of_token, 2)
    terms = LOSSES[loss_fn](p.to(dtype), {**inputs, **one}, datums)
    assert terms.dtype == dtype
    assert torch.equal(terms, LOSSES[loss_fn](p.to(dtype), {**inputs, **each}, datums))


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), loss_fn=st.sampled_from(["ppo", "cispo", "importance_sampling", "gspo"]))
def test_on_policy_every_ratio_is_one_and_the_gradient_is_reinforce(seed: int, loss_fn: str) -> None:
    p, inputs, of_token = batch(seed, [3, 5], spread=0.0)
    inputs |= {"clip_low_threshold": torch.tensor(0.8), "clip_high_threshold": torch.tensor(1.2)}
    terms = LOSSES[loss_fn](p, inputs, datums_of(of_token, 2))
    (gradient,) = torch.autograd.grad(terms.sum(), p)
    torch.testing.assert_close(gradient, -inputs["advantages"], rtol=BOUND, atol=BOUND)


def by_hand(loss_fn: str, ratio: float, advantage: float, beta: float = 0.05) -> tuple[float, float]:
    """Term and gradient of one token with q = −2."""
    p = torch.tensor([-2 + math.log(ratio)], dtype=torch.float64, requires_grad=True)
    inputs = {"logprobs": torch.full_like(p, -2.0), "advantages": torch.full_like(p, advantage)}
    inputs |= {"sequence_ratio_mask": torch.ones_like(p), "beta": torch.full_like(p, beta)}
    inputs |= {"clip_low_threshold": torch.full_like(p, 0.8), "clip_high_threshold": torch.full_like(p, 1.2)}
    terms = LOSSES[loss_fn](p, inputs, datums_of([0], 1))
    (gradient,) = torch.autograd.grad(terms.sum(), p)
    return float(terms.detach()), float(gradient)


@pytest.mark.parametrize(
    ("loss_fn", "ratio", "advantage", "term", "gradient"),
    [
        ("importance_sampling", 2.0, 3.0, -6.0, -6.0),
        ("importance_sampling", 0.5, -3.0, 1.5, 1.5),
        # clipped: too far already in the direction the advantage wants
        ("ppo", 2.0, 3.0, -3.6, 0.0),
        ("ppo", 0.5, -3.0, 2.4, 0.0),
        # not clipped: the way back, and inside
        ("ppo", 2.0, -3.0, 6.0, 6.0),
        ("ppo", 0.5, 3.0, -1.5, -1.5),
        ("ppo", 1.1, 3.0, -3.3, -3.3),
        ("gspo", 2.0, 3.0, -3.6, 0.0),
        ("gspo", 2.0, -3.0, 6.0, 6.0),
        # the clipped ratio is a factor, the gradient goes on
        ("cispo", 2.0, 3.0, -1.2 * (math.log(2) - 2) * 3, -3.6),
        ("cispo", 0.5, -3.0, 0.8 * (math.log(0.5) - 2) * 3, 2.4),
        ("cispo", 1.1, 3.0, -1.1 * (math.log(1.1) - 2) * 3, -3.3),
        ("dro", math.e, 3.0, 3.0 + 0.025, -3.0 + 0.05),
        ("dro", 1.0, -3.0, -6.0, 3.0),
    ],
)
def test_numbers_worked_out_by_hand(loss_fn: str, ratio: float, advantage: float, term: float, gradient: float) -> None:
    assert by_hand(loss_fn, ratio, advantage) == (pytest.approx(term, abs=1e-12), pytest.approx(gradient, abs=1e-12))


def test_an_empty_sequence_ratio_mask_is_the_ratio_one() -> None:
    p, inputs, of_token = batch(2, [3, 4], spread=3.0)
    mask = torch.tensor([float(datum == 1) for datum in of_token], dtype=torch.float64)
    inputs |= {"sequence_ratio_mask": mask, "clip_low_threshold": torch.tensor(0.8)}
    inputs |= {"clip_high_threshold": torch.tensor(1.2), "advantages": torch.linspace(-1, 1, 7, dtype=torch.float64)}
    terms = LOSSES["gspo"](p, inputs, datums_of(of_token, 2))
    (gradient,) = torch.autograd.grad(terms.sum(), p)
    empty = torch.tensor(of_token) == 0
    torch.testing.assert_close(terms[empty], -inputs["advantages"][empty])
    torch.testing.assert_close(gradient[empty], -inputs["advantages"][empty])
    assert torch.isfinite(gradient).all()


def test_tokens_outside_the_mask_have_their_sequences_ratio() -> None:
    q = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    p = (q + torch.tensor([math.log(1.1), 5.0, math.log(1.1)], dtype=torch.float64)).requires_grad_()
    inputs = {"logprobs": q, "advantages": torch.ones_like(q)}
    inputs |= {"sequence_ratio_mask": torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)}
    inputs |= {"clip_low_threshold": torch.tensor(0.8), "clip_high_threshold": torch.tensor(1.2)}
    terms = LOSSES["gspo"](p, inputs, datums_of([0, 0, 0], 1))
    torch.testing.assert_close(terms, torch.full_like(q, -1.1))


# --- sums over datums ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32), lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_sums_and_their_gradients(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    of_token = rng.permutation(np.repeat(np.arange(len(lengths)), lengths)).tolist()
    x = torch.from_numpy(rng.normal(size=len(of_token))).requires_grad_()
    datums = datums_of(of_token, len(lengths))
    sums = datums.sums(x)
    expected = [sum(x[t].item() for t in range(len(x)) if of_token[t] == d) for d in range(len(lengths))]
    torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64), rtol=BOUND, atol=BOUND)
    factors = torch.from_numpy(rng.normal(size=len(lengths)))
    (gradient,) = torch.autograd.grad((sums * factors).sum(), x)
    assert torch.equal(gradient, factors[torch.tensor(of_token, dtype=torch.int64)])
    assert torch.equal(datums.spread(factors), gradient)


def test_sums_of_float32_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=10_000).astype(np.float32)) * 1e3
    sums = {
        float(Datums(torch.zeros(10_000, dtype=torch.int64), 1).sums(values[torch.from_numpy(rng.permutation(10_000))]))
        for _ in range(20)
    }
    assert len(sums) == 1
    assert Datums(torch.zeros(10_000, dtype=torch.int64), 1).sums(values).dtype == torch.float32
