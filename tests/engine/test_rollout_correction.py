"""Rollout correction: configurations, and examples by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mint.engine.corrections import Corrected, batch_scale, corrected_importance_sampling, rollout_weights
from mint.engine.losses import LOSSES, Datums
from mint.engine.rollout_correction import REJECTIONS, Rejection, RolloutCorrection, parse_rollout_correction
from mint.errors import BadRequestError

PUBLISHED = {
    "rollout_is": "sequence",
    "rollout_is_threshold": 1.1,
    "rollout_rs": "seq_sum_k1",
    "rollout_rs_threshold": "0.5_2.0",
    "bypass_mode": True,
    "loss_type": "reinforce",
}


# --- configurations -----------------------------------------------------------------------------------------


def test_the_published_example() -> None:
    config = parse_rollout_correction(PUBLISHED)
    assert config == RolloutCorrection(
        rollout_is="sequence",
        low=None,
        high=1.1,
        rollout_is_batch_normalize=False,
        rejections=(Rejection("seq_sum", "k1", math.log(0.5), math.log(2.0)),),
        loss_type="reinforce",
    )
    assert not config.per_token


def test_defaults() -> None:
    expected = RolloutCorrection(None, None, 2.0, False, (), "ppo_clip")
    assert parse_rollout_correction({}) == expected
    assert parse_rollout_correction(dict.fromkeys(PUBLISHED)) == expected, "null is as good as absent"


@pytest.mark.parametrize(
    ("threshold", "bounds"),
    [
        (3, (None, 3.0)),
        (0.5, (None, 0.5)),
        ("2.5", (None, 2.5)),
        (" 1e-2 ", (None, 0.01)),
        ("0.5_2.0", (0.5, 2.0)),
        ("1_1", (1.0, 1.0)),
    ],
)
def test_weight_thresholds(threshold: object, bounds: tuple[float | None, float]) -> None:
    config = parse_rollout_correction({"rollout_is": "token", "rollout_is_threshold": threshold})
    assert (config.low, config.high) == bounds


def test_a_list_of_rejections() -> None:
    config = parse_rollout_correction(
        {"rollout_rs": "token_k1, seq_max_k2,seq_mean_k3,seq_mean_k1", "rollout_rs_threshold": "2,2.5, 0.1 ,0.9_1.25"}
    )
    assert config.rejections == (
        Rejection("token", "k1", math.log(0.5), math.log(2)),
        Rejection("seq_max", "k2", -math.inf, 2.5),
        Rejection("seq_mean", "k3", -math.inf, 0.1),
        Rejection("seq_mean", "k1", math.log(0.9), math.log(1.25)),
    )
    assert parse_rollout_correction({"rollout_rs": "seq_sum_k2", "rollout_rs_threshold": 3}).rejections == (
        Rejection("seq_sum", "k2", -math.inf, 3.0),
    )


def test_the_eleven_estimators() -> None:
    assert sorted(REJECTIONS) == [
        "seq_max_k2",
        "seq_max_k3",
        *(f"{kind}_k{number}" for kind in ("seq_mean", "seq_sum", "token") for number in (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        ({}, True),
        ({"rollout_is": "token"}, True),
        ({"rollout_is": "token", "rollout_rs": "token_k1,token_k3", "rollout_rs_threshold": "2,2"}, True),
        ({"rollout_is": "sequence"}, False),
        ({"rollout_is": "token", "rollout_is_batch_normalize": True}, False),
        ({"rollout_is_batch_normalize": True}, True),
        ({"rollout_rs": "token_k1,seq_max_k2", "rollout_rs_threshold": "2,2"}, False),
        ({"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "2"}, False),
    ],
)
def test_what_can_be_corrected_token_by_token(config: dict[str, object], per_token: bool) -> None:
    assert parse_rollout_correction(config).per_token == per_token


@pytest.mark.parametrize(
    ("config", "field", "named"),
    [
        ({"rollout_token_veto_threshold": 1e-4}, "rollout_token_veto_threshold", "rollout_rs_threshold"),
        ({"Rollout_is": "token"}, "Rollout_is", "unknown"),
        ({"rollout_is": "geometric"}, "rollout_is", "token or sequence"),
        ({"rollout_is": True}, "rollout_is", "True"),
        ({"rollout_is": ["token"]}, "rollout_is", "['token']"),
        ({"rollout_is_threshold": 0}, "rollout_is_threshold", "positive"),
        ({"rollout_is_threshold": -1.0}, "rollout_is_threshold", "-1.0"),
        ({"rollout_is_threshold": math.nan}, "rollout_is_threshold", "nan"),
        ({"rollout_is_threshold": math.inf}, "rollout_is_threshold", "inf"),
        ({"rollout_is_threshold": 10**400}, "rollout_is_threshold", "positive"),
        ({"rollout_is_threshold": True}, "rollout_is_threshold", "True"),
        ({"rollout_is_threshold": [1.0]}, "rollout_is_threshold", "[1.0]"),
        ({"rollout_is_threshold": ""}, "rollout_is_threshold", "''"),
        ({"rollout_is_threshold": "two"}, "rollout_is_threshold", "two"),
        ({"rollout_is_threshold": "2.0_0.5"}, "rollout_is_threshold", "smaller first"),
        ({"rollout_is_threshold": "0_2"}, "rollout_is_threshold", "positive"),
        ({"rollout_is_threshold": "_2"}, "rollout_is_threshold", "_2"),
        ({"rollout_is_threshold": "1_2_3"}, "rollout_is_threshold", "1_2_3"),
        ({"rollout_is_threshold": "1,2"}, "rollout_is_threshold", "1,2"),
        ({"rollout_is_threshold": "nan_1"}, "rollout_is_threshold", "nan_1"),
        ({"rollout_is_batch_normalize": 1}, "rollout_is_batch_normalize", "true or false"),
        ({"rollout_rs": 3, "rollout_rs_threshold": 2.0}, "rollout_rs", "must be text"),
        ({"rollout_rs": "seq_max_k1", "rollout_rs_threshold": 2.0}, "rollout_rs", "'seq_max_k1' is unknown"),
        ({"rollout_rs": "sequence", "rollout_rs_threshold": 2.0}, "rollout_rs", "seq_sum_k1"),
        ({"rollout_rs": "", "rollout_rs_threshold": 2.0}, "rollout_rs", "''"),
        ({"rollout_rs": "token_k1,", "rollout_rs_threshold": "2,2"}, "rollout_rs", "''"),
        ({"rollout_rs": "token_k2,token_k2", "rollout_rs_threshold": "2,3"}, "rollout_rs", "twice"),
        ({"rollout_rs": "token_k1"}, "rollout_rs_threshold", "0 thresholds for the 1"),
        ({"rollout_rs": "token_k1,token_k2", "rollout_rs_threshold": "2"}, "rollout_rs_threshold", "1 thresholds"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "2,3"}, "rollout_rs_threshold", "2 thresholds"),
        ({"rollout_rs_threshold": 2.0}, "rollout_rs_threshold", "1 thresholds for the 0"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": 0.5}, "rollout_rs_threshold", "1 or more"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": "2_1"}, "rollout_rs_threshold", "smaller first"),
        ({"rollout_rs": "token_k1", "rollout_rs_threshold": [2.0]}, "rollout_rs_threshold", "[2.0]"),
        ({"rollout_rs": "seq_sum_k2", "rollout_rs_threshold": "1_2"}, "rollout_rs_threshold", "one number"),
        ({"rollout_rs": "seq_sum_k3", "rollout_rs_threshold": -1}, "rollout_rs_threshold", "positive"),
        ({"bypass_mode": False}, "bypass_mode", "third policy"),
        ({"bypass_mode": "true"}, "bypass_mode", "true or false"),
        ({"loss_type": "ppo"}, "loss_type", "reinforce or ppo_clip"),
    ],
)
def test_bad_configurations(config: dict[str, object], field: str, named: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_rollout_correction(config)
    assert caught.value.field == f"rollout_correction_config.{field}"
    assert named in str(caught.value)


# --- by hand ------------------------------------------------------------------------------------------------


def scene(
    *sequences: list[float], advantages: float = 1.0, mask: list[float] | None = None
) -> tuple[Tensor, dict[str, Tensor], Datums]:
    """Sequences by the ratio ρ of each of their tokens; q is −3 everywhere."""
    ratios = torch.tensor([ratio for sequence in sequences for ratio in sequence], dtype=torch.float64)
    of_token = [index for index, sequence in enumerate(sequences) for _ in sequence]
    p = (ratios.log() - 3).requires_grad_()
    inputs = {"logprobs": torch.full_like(ratios, -3.0), "advantages": torch.full_like(ratios, advantages)}
    inputs |= {"weights": torch.ones_like(ratios)}
    if mask is not None:
        inputs["mask"] = torch.tensor(mask, dtype=torch.float64)
    return p, inputs, Datums(torch.tensor(of_token), len(sequences))


def corrected(config: dict[str, Any], *sequences: list[float], **more: Any) -> Corrected:
    return corrected_importance_sampling(*scene(*sequences, **more), parse_rollout_correction(config))


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"rollout_is": "token"}, [2, 0.5, 2, 1, 0.25]),  # 3 is above the default threshold
        ({"rollout_is": "token", "rollout_is_threshold": 1.5}, [1.5, 0.5, 1.5, 1, 0.25]),
        ({"rollout_is": "token", "rollout_is_threshold": "0.4_2.5"}, [2, 0.5, 0, 1, 0]),
        ({"rollout_is": "sequence"}, [2, 2, 2, 0.25, 0.25]),  # 2 · 0.5 · 3 = 3
        ({"rollout_is": "sequence", "rollout_is_threshold": 10}, [3, 3, 3, 0.25, 0.25]),
        ({"rollout_is": "sequence", "rollout_is_threshold": "0.5_10"}, [3, 3, 3, 0, 0]),
    ],
)
def test_weights(config: dict[str, Any], weight: list[float]) -> None:
    result = corrected({**config, "loss_type": "reinforce"}, [2, 0.5, 3], [1, 0.25])
    torch.testing.assert_close(result.weight, torch.tensor(weight, dtype=torch.float64))
    assert not result.weight.requires_grad
    p, inputs, datums = scene([2, 0.5, 3], [1, 0.25])
    torch.testing.assert_close(result.terms, -result.weight * p * inputs["advantages"])
    again = rollout_weights(p, inputs, datums, parse_rollout_correction(config))
    assert torch.equal(again, result.weight)
    assert not again.requires_grad


E = math.e
# of [e, 1, 1/e²]: k1 = −1, 0, 2; k2 = 0.5, 0, 2; k3 = e − 2, 0, e⁻² + 1; of [1, 1]: 0 everywhere
K3 = [E - 2, 0.0, E**-2 + 1]


@pytest.mark.parametrize(
    ("name", "low", "high", "kept"),
    [
        ("token_k1", math.exp(-0.9), math.exp(2.1), [0, 1, 1]),
        ("token_k1", math.exp(-1.1), math.exp(1.9), [1, 1, 0]),
        ("token_k2", None, 0.6, [1, 1, 0]),
        ("token_k2", None, 0.4, [0, 1, 0]),
        ("token_k3", None, K3[0] + 0.01, [1, 1, 0]),
        ("token_k3", None, K3[0] - 0.01, [0, 1, 0]),
        ("seq_sum_k1", 0.9, math.exp(1.1), [1, 1, 1]),
        ("seq_sum_k1", 0.9, math.exp(0.9), [0, 0, 0]),
        ("seq_sum_k2", None, 2.6, [1, 1, 1]),
        ("seq_sum_k2", None, 2.4, [0, 0, 0]),
        ("seq_sum_k3", None, sum(K3) + 0.01, [1, 1, 1]),
        ("seq_sum_k3", None, sum(K3) - 0.01, [0, 0, 0]),
        ("seq_mean_k1", 0.9, math.exp(0.34), [1, 1, 1]),
        ("seq_mean_k1", 0.9, math.exp(0.33), [0, 0, 0]),
        ("seq_mean_k2", None, 0.84, [1, 1, 1]),
        ("seq_mean_k2", None, 0.83, [0, 0, 0]),
        ("seq_mean_k3", None, sum(K3) / 3 + 0.01, [1, 1, 1]),
        ("seq_mean_k3", None, sum(K3) / 3 - 0.01, [0, 0, 0]),
        ("seq_max_k2", None, 2.1, [1, 1, 1]),
        ("seq_max_k2", None, 1.9, [0, 0, 0]),
        ("seq_max_k3", None, K3[2] + 0.01, [1, 1, 1]),
        ("seq_max_k3", None, K3[2] - 0.01, [0, 0, 0]),
    ],
)
def test_rejections(name: str, low: float | None, high: float, kept: list[float]) -> None:
    threshold = high if low is None else f"{low!r}_{high!r}"
    config = {"rollout_rs": name, "rollout_rs_threshold": threshold, "loss_type": "reinforce"}
    result = corrected(config, [E, 1, E**-2], [1, 1])
    assert result.kept.tolist() == [*kept, 1, 1]
    p, *_ = scene([E, 1, E**-2], [1, 1])
    torch.testing.assert_close(result.terms, -p * torch.tensor([*kept, 1, 1], dtype=torch.float64))


def test_one_number_bounds_k1_on_both_sides() -> None:
    config = {"rollout_rs": "token_k1", "rollout_rs_threshold": 2.0}
    assert corrected(config, [1.9, 2.1, 0.51, 0.49]).kept.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("name", "threshold", "log_ratio"), [("k1", "1_1", 0.0), ("k2", 2.0, -2.0), ("k2", "2", 2.0)])
@pytest.mark.parametrize("kind", ["token", "seq_sum", "seq_mean"])
def test_bounds_are_inside(kind: str, name: str, threshold: object, log_ratio: float) -> None:
    _, inputs, datums = scene([1])
    config = parse_rollout_correction({"rollout_rs": f"{kind}_{name}", "rollout_rs_threshold": threshold})
    result = corrected_importance_sampling(inputs["logprobs"] + log_ratio, inputs, datums, config)
    assert result.kept.tolist() == [1]


def test_a_token_must_pass_every_rejection() -> None:
    config = {"rollout_rs": "token_k1,seq_max_k2", "rollout_rs_threshold": f"2.0,{0.5 * math.log(4) ** 2}"}
    assert corrected(config, [1, 3], [1, 5], [1, 1.5]).kept.tolist() == [1, 0, 0, 0, 1, 1]


def test_the_published_example_keeps_weighs_and_rejects() -> None:
    result = corrected(PUBLISHED, [1.2, 1.2], [0.9, 0.9], [2, 1.5], [0.5, 0.9])
    torch.testing.assert_close(result.weight, torch.tensor([1.1, 1.1, 0.81, 0.81, 1.1, 1.1, 0.45, 0.45]).double())
    assert result.kept.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    p, *_ = scene([1.2, 1.2], [0.9, 0.9], [2, 1.5], [0.5, 0.9])
    torch.testing.assert_close(result.terms, -result.weight * p * result.kept)


def test_ppo_clip_clips_the_ratio_and_measures_the_weight() -> None:
    config = {"rollout_is": "token", "rollout_rs": "token_k1", "rollout_rs_threshold": 3.0, "loss_type": "ppo_clip"}
    result = corrected(config, [1.1, 2, 0.5, 4])
    torch.testing.assert_close(result.terms, torch.tensor([-1.1, -1.2, -0.5, 0]).double())
    torch.testing.assert_close(result.weight, torch.tensor([1.1, 2, 0.5, 2]).double())
    p, inputs, datums = scene([1.1, 2, 0.5, 4], advantages=-1.0)
    inputs |= {"clip_low_threshold": torch.tensor(0.6), "clip_high_threshold": torch.tensor(1.2)}
    result = corrected_importance_sampling(p, inputs, datums, parse_rollout_correction(config))
    torch.testing.assert_close(result.terms, torch.tensor([1.1, 2, 0.6, 0]).double(), rtol=1e-7, atol=1e-7)


def test_without_rejection_ppo_clip_is_ppo() -> None:
    p, inputs, datums = scene([1.1, 2, 0.5, 4], [0.1])
    clip = {"clip_low_threshold": torch.tensor(0.8), "clip_high_threshold": torch.tensor(1.2)}
    result = corrected_importance_sampling(p, inputs | clip, datums, parse_rollout_correction({}))
    torch.testing.assert_close(result.terms, LOSSES["ppo"](p, inputs | clip, datums))


def test_the_gradient_of_truncated_token_weights_is_that_of_importance_sampling_inside_the_bound() -> None:
    config = parse_rollout_correction({"rollout_is": "token", "rollout_is_threshold": 10, "loss_type": "reinforce"})
    p, inputs, datums = scene([1.1, 2, 0.5, 4], advantages=-0.7)
    (ours,) = torch.autograd.grad(corrected_importance_sampling(p, inputs, datums, config).terms.sum(), p)
    (plain,) = torch.autograd.grad(LOSSES["importance_sampling"](p, inputs, datums).sum(), p)
    torch.testing.assert_close(ours, plain)


# --- which tokens are looked at -----------------------------------------------------------------------------

SEQUENCE = {"rollout_is": "sequence", "rollout_is_threshold": 100, "loss_type": "reinforce"}
REJECT = {"rollout_rs": "token_k2,seq_max_k2", "rollout_rs_threshold": "0.01,100", "loss_type": "reinforce"}


def test_the_prompt_is_filled_with_zeros_and_not_counted() -> None:
    p, inputs, datums = scene([7, 7, 2, 3])
    inputs["logprobs"][:2] = 0
    inputs["advantages"][:2] = 0
    result = corrected_importance_sampling(p, inputs, datums, parse_rollout_correction(SEQUENCE))
    assert result.counted.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(result.weight, torch.tensor([1, 1, 6, 6]).double())
    assert result.terms[:2].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["logprobs", "advantages"])
def test_a_zero_in_one_input_alone_is_a_value(name: str) -> None:
    p, inputs, datums = scene([1, 1, 1])
    inputs[name][1] = 0
    result = corrected_importance_sampling(p, inputs, datums, parse_rollout_correction(SEQUENCE))
    assert result.counted.tolist() == [1, 1, 1]


def test_tokens_without_weight_are_not_counted() -> None:
    p, inputs, datums = scene([7, 2, 3])
    inputs["weights"][0] = 0
    result = corrected_importance_sampling(p, inputs, datums, parse_rollout_correction(SEQUENCE))
    assert result.counted.tolist() == [0, 1, 1]
    torch.testing.assert_close(result.weight, torch.tensor([1, 6, 6]).double())


def test_a_mask_decides() -> None:
    result = corrected(SEQUENCE, [7, 2, 3], mask=[1, 0, 0.5])
    assert result.counted.tolist() == [1, 0, 1]
    torch.testing.assert_close(result.weight, torch.tensor([21, 1, 21]).double())
    result = corrected(REJECT, [7, 7, 1], mask=[1, 0, 1])
    assert result.kept.tolist() == [0, 1, 1], "what is not looked at is not rejected"
    result = corrected({**REJECT, "rollout_rs_threshold": "0.01,1"}, [7, 1, 1], mask=[0, 1, 1])
    assert result.kept.tolist() == [1, 1, 1], "nor does it speak for its sequence"
    config = {"rollout_rs": "seq_mean_k2", "rollout_rs_threshold": 1.9}
    assert corrected(config, [E**2, 1, 1], mask=[1, 0, 0]).kept.tolist() == [0, 1, 1], "nor does it count in a mean"


def test_a_datum_without_response_is_left_alone() -> None:
    config = {**SEQUENCE, "rollout_rs": "seq_mean_k1,seq_max_k3", "rollout_rs_threshold": "1.5_2,0.1"}
    result = corrected({**config, "rollout_is_batch_normalize": True}, [7, 7], [1, 1], mask=[0, 0, 1, 1])
    assert result.weight.tolist() == [1, 1, 1, 1]
    assert result.kept.tolist() == [1, 1, 0, 0]
    assert torch.isfinite(result.terms).all()


# --- normalisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "mean"),
    [
        ({"rollout_is": "token"}, 1.0),
        ({"rollout_is": "token", "rollout_is_batch_normalize": True}, (1.5 + 0.5 + 2 + 1) / 4),
        ({"rollout_is": "sequence", "rollout_is_batch_normalize": True}, (1.5 + 1.0) / 2),
        ({"rollout_is_batch_normalize": True}, 1.0),
    ],
)
def test_batch_scale(config: dict[str, Any], mean: float) -> None:
    p, inputs, datums = scene([1.5, 0.5, 2, 9], [1, 5], [7], mask=[1, 1, 1, 0, 1, 0, 0])
    parsed = parse_rollout_correction({**config, "loss_type": "reinforce"})
    result = corrected_importance_sampling(p, inputs, datums, parsed)
    scale = batch_scale(rollout_weights(p, inputs, datums, parsed), result.counted, datums, parsed)
    assert scale == pytest.approx(1 / mean)
    scaled = corrected_importance_sampling(p, inputs, datums, parsed, scale)
    expected = torch.where(result.counted > 0, result.weight * scale, 1.0)
    torch.testing.assert_close(scaled.weight, expected)
    torch.testing.assert_close(scaled.terms, -expected * p)


def test_rejected_tokens_count_in_the_mean() -> None:
    config = {"rollout_is": "token", "rollout_is_batch_normalize": True, "rollout_is_threshold": 10}
    config |= {"rollout_rs": "token_k1", "rollout_rs_threshold": 2.0}
    p, inputs, datums = scene([1, 5])
    parsed = parse_rollout_correction(config)
    weights = rollout_weights(p, inputs, datums, parsed)
    assert batch_scale(weights, torch.ones_like(p), datums, parsed) == pytest.approx(1 / 3)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_there_may_be_nothing_to_normalise(level: str) -> None:
    parsed = parse_rollout_correction(
        {"rollout_is": level, "rollout_is_threshold": "5_6", "rollout_is_batch_normalize": True}
    )
    p, inputs, datums = scene([1, 2])
    weights = rollout_weights(p, inputs, datums, parsed)
    assert weights.tolist() == [0, 0]
    assert batch_scale(weights, torch.ones_like(p), datums, parsed) == 1.0
    assert batch_scale(weights, torch.zeros_like(p), datums, parsed) == 1.0


# --- extremes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss_type", ["reinforce", "ppo_clip"])
@pytest.mark.parametrize("level", ["token", "sequence", None])
def test_nothing_overflows(dtype: torch.dtype, loss_type: str, level: str | None) -> None:
    config = {"rollout_is": level, "rollout_is_threshold": 1e9, "loss_type": loss_type}
    config |= {"rollout_rs": ",".join(REJECTIONS), "rollout_rs_threshold": ",".join("2" for _ in REJECTIONS)}
    p = torch.tensor([-1e5, -1.0, -1.0, -1e5], dtype=dtype, requires_grad=True)
    inputs = {"logprobs": torch.tensor([-1e5, -1e5, -1e30, -1.0], dtype=dtype)}
    inputs |= {name: torch.full((4,), -1.0, dtype=dtype) for name in ("advantages", "weights")}
    datums = Datums(torch.tensor([0, 0, 0, 1]), 2)
    result = corrected_importance_sampling(p, inputs, datums, parse_rollout_correction(config))
    (gradient,) = torch.autograd.grad(result.terms.sum(), p)
    for values in (result.terms, result.weight, gradient):
        assert torch.isfinite(values).all()
    assert result.terms.dtype == result.weight.dtype == dtype
    assert result.kept.tolist() == [0, 0, 0, 0]
    assert not gradient.any()
    # a token's logarithm counts for ±20 at most, and so does their sum
    logs = {"token": [0, 20, 20, -20], "sequence": [20, 20, 20, -20], None: [0, 0, 0, 0]}[level]
    torch.testing.assert_close(result.weight, torch.tensor(logs, dtype=dtype).exp())
