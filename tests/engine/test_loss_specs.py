"""What a pass is refused for, and that the refusal names the datum and the field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mint.engine.core import Datum, ForwardBackward, ModelInfo
from mint.engine.loss_specs import LOSS_SPECS, MAX_TARGETS, check_forward_backward
from mint.engine.losses import LOSSES
from mint.engine.rollout_correction import parse_rollout_correction
from mint.errors import BadRequestError

MODEL = ModelInfo("some/model", "", "Some", 50, 10, 10, (2,), 32, 1000)
CLIPPED = ["ppo", "cispo", "gspo"]
REINFORCE = parse_rollout_correction({"loss_type": "reinforce"})
PPO_CLIP = parse_rollout_correction({"loss_type": "ppo_clip"})


def good_inputs(length: int = 4) -> dict[str, np.ndarray]:
    return {
        "target_tokens": np.arange(length),
        "weights": np.full(length, 0.5, np.float32),
        "logprobs": np.full(length, -1.0, np.float32),
        "advantages": np.full(length, 2.0, np.float32),
        "sequence_ratio_mask": np.full(length, 1.0, np.float32),
    }


def a_pass(
    loss_fn: str = "ppo",
    tokens: list[int] | None = None,
    config: dict[str, float] | None = None,
    **changes: object,
) -> ForwardBackward:
    """Two datums; the second one is changed."""
    inputs = {**good_inputs(), **changes}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    good = Datum(np.arange(4, dtype=np.int32), good_inputs())
    changed = Datum(np.array([0, 1, 2, 3] if tokens is None else tokens, np.int32), inputs)
    return ForwardBackward("run", (good, changed), loss_fn, config or {})


def refusal(command: ForwardBackward) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        check_forward_backward(command, MODEL)
    return caught.value


def test_every_loss_has_a_function_and_a_specification() -> None:
    assert LOSSES.keys() | {"custom"} == LOSS_SPECS.keys(), "a custom loss is a graph that comes with the command"


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_a_complete_pass_is_served(loss_fn: str) -> None:
    checked = check_forward_backward(a_pass(loss_fn), MODEL)
    assert checked.run_id == "run"
    assert len(checked.data) == 2
    used = {"target_tokens", "weights", *LOSS_SPECS[loss_fn].required}
    for datum in checked.data:
        assert datum.loss_inputs.keys() == used, "inputs that the loss does not use are dropped"
        for name in used:
            np.testing.assert_array_equal(datum.loss_inputs[name], good_inputs()[name])


def test_defaults_are_filled_in() -> None:
    checked = check_forward_backward(a_pass("ppo", weights=None, config={"clip_low_threshold": 0.5}), MODEL)
    assert checked.loss_config == {"clip_low_threshold": 0.5, "clip_high_threshold": 1.2}
    np.testing.assert_array_equal(checked.data[1].loss_inputs["weights"], np.ones(4))
    assert checked.data[1].loss_inputs["weights"].dtype == np.float32
    np.testing.assert_array_equal(checked.data[0].loss_inputs["weights"], good_inputs()["weights"])


def test_published_defaults() -> None:
    assert {name: dict(spec.config) for name, spec in LOSS_SPECS.items()} == {
        "cross_entropy": {},
        "importance_sampling": {},
        "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        "cispo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        "dro": {"beta": 0.05},
        "gspo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        "custom": {},
    }


def test_only_a_sequence_ratio_and_a_graph_look_beyond_the_token() -> None:
    assert {name for name, spec in LOSS_SPECS.items() if not spec.per_token} == {"gspo", "custom"}


def test_integer_weights_are_numbers_too() -> None:
    checked = check_forward_backward(a_pass(weights=np.array([0, 1, 1, 0])), MODEL)
    assert checked.data[1].loss_inputs["weights"].dtype == np.float32


@pytest.mark.parametrize("length", [1, 10])
def test_lengths_up_to_the_limit(length: int) -> None:
    command = ForwardBackward("run", (Datum(np.zeros(length, np.int32), good_inputs(length)),), "ppo")
    assert check_forward_backward(command, MODEL).num_tokens == length


@pytest.mark.parametrize("weights", [np.zeros(4), np.array([-1.5, 0.0, 2.0, -0.0])])
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_weights_of_any_sign(loss_fn: str, weights: np.ndarray) -> None:
    checked = check_forward_backward(a_pass(loss_fn, weights=weights.astype(np.float32)), MODEL)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["weights"], weights)


def test_log_probabilities_alone_need_targets_alone() -> None:
    datum = Datum(np.arange(4, dtype=np.int32), {"target_tokens": np.arange(4)})
    checked = check_forward_backward(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True), MODEL)
    np.testing.assert_array_equal(checked.data[0].loss_inputs["weights"], np.ones(4))


# --- several targets for each position ----------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
def test_cross_entropy_takes_several_targets_for_each_position(width: int) -> None:
    targets = np.arange(4 * width).reshape(4, width)
    weights = np.linspace(-1, 1, 4 * width, dtype=np.float32).reshape(4, width)
    checked = check_forward_backward(a_pass("cross_entropy", target_tokens=targets, weights=weights), MODEL)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["target_tokens"], targets)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["weights"], weights)
    checked = check_forward_backward(a_pass("cross_entropy", target_tokens=targets, weights=None), MODEL)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["weights"], np.ones((4, width)))


@pytest.mark.parametrize("loss_fn", [name for name in LOSSES if name != "cross_entropy"])
def test_no_other_loss_does(loss_fn: str) -> None:
    error = refusal(a_pass(loss_fn, target_tokens=np.zeros((4, 2), np.int64)))
    assert error.field == "data[1].loss_fn_inputs.target_tokens"
    assert "(4, 2)" in str(error)
    assert str(error).endswith("it must be (4,)")


def columns(count: int, width: int = 2) -> dict[str, np.ndarray]:
    return {"target_tokens": np.zeros((count, width), np.int64), "weights": np.ones((count, width), np.float32)}


@pytest.mark.parametrize(
    ("changes", "field", "named"),
    [
        (columns(3), "target_tokens", "must be (4,), or (4, K)"),
        (columns(4, 0), "target_tokens", "(4, 0)"),
        ({"target_tokens": np.zeros((4, 2, 1), np.int64)}, "target_tokens", "(4, 2, 1)"),
        ({"target_tokens": np.zeros((), np.int64)}, "target_tokens", "shape ()"),
        ({"target_tokens": np.zeros((4, 2), np.float32)}, "target_tokens", "integers"),
        ({"target_tokens": np.array([[0, 1], [2, 3], [4, 5], [6, 50]])}, "target_tokens", "token 50 at position 3, 1"),
        ({**columns(4), "weights": np.ones(4, np.float32)}, "weights", "must be (4, 2)"),
        ({**columns(4), "weights": np.ones((4, 3), np.float32)}, "weights", "must be (4, 2)"),
        ({"weights": np.ones((4, 1), np.float32)}, "weights", "must be (4,)"),
        ({**columns(4), "weights": np.array([[1, 1], [1, 1], [np.nan, 1], [1, 1]])}, "weights", "nan at position 2, 0"),
        (
            {"target_tokens": np.broadcast_to(np.int64(0), (4, MAX_TARGETS // 4 + 1))},
            "target_tokens",
            f"4 × {MAX_TARGETS // 4 + 1} targets; a datum takes at most {MAX_TARGETS}",
        ),
    ],
)
def test_what_is_wrong_with_several_targets(changes: dict[str, np.ndarray], field: str, named: str) -> None:
    error = refusal(a_pass("cross_entropy", **changes))
    assert (error.field, error.datum) == (f"data[1].loss_fn_inputs.{field}", 1)
    assert named in str(error)


# --- thresholds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_fn", CLIPPED)
def test_a_datum_may_bring_thresholds_for_each_token(loss_fn: str) -> None:
    low = np.array([0.0, 0.5, 0.8, 1.2], np.float32)
    checked = check_forward_backward(a_pass(loss_fn, clip_low_threshold=low), MODEL)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["clip_low_threshold"], low)
    np.testing.assert_array_equal(checked.data[0].loss_inputs["clip_low_threshold"], np.full(4, 0.8, np.float32))
    for datum in checked.data:
        assert "clip_high_threshold" not in datum.loss_inputs, "which no datum brings"
    assert checked.loss_config == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}


SOME = st.floats(-0.25, 2, width=16)


@given(
    low=st.none() | arrays.arrays(np.float32, 4, elements=SOME),
    high=st.none() | arrays.arrays(np.float32, 4, elements=SOME),
    loss_fn=st.sampled_from(CLIPPED),
)
def test_thresholds_are_refused_where_they_cross(low: np.ndarray | None, high: np.ndarray | None, loss_fn: str) -> None:
    command = a_pass(loss_fn, clip_low_threshold=low, clip_high_threshold=high)
    bad = None
    for name, values in (("clip_low_threshold", low), ("clip_high_threshold", high)):
        for position in range(4):
            if bad is None and values is not None and values[position] < 0:
                bad = name, position
    for position in range(4):
        lower = np.float32(0.8) if low is None else low[position]
        upper = np.float32(1.2) if high is None else high[position]
        if bad is None and lower > upper:
            bad = "clip_high_threshold" if low is None else "clip_low_threshold", position
    if bad is None:
        assert len(check_forward_backward(command, MODEL).data) == 2
    else:
        error = refusal(command)
        assert (error.field, error.datum) == (f"data[1].loss_fn_inputs.{bad[0]}", 1)
        assert f"at position {bad[1]}" in str(error)


def test_no_default_threshold_is_in_the_way_of_a_datum_with_its_own() -> None:
    own = {"clip_low_threshold": np.full(4, 0.2, np.float32), "clip_high_threshold": np.full(4, 0.4, np.float32)}
    datum = Datum(np.arange(4, dtype=np.int32), {**good_inputs(), **own})
    command = ForwardBackward("run", (datum,), "ppo", {"clip_high_threshold": 0.5})
    assert check_forward_backward(command, MODEL).loss_config == {"clip_low_threshold": 0.8, "clip_high_threshold": 0.5}


# --- rollout correction -------------------------------------------------------------------------------------


def test_a_run_that_corrects_its_rollouts_has_a_mask_for_each_datum() -> None:
    inputs = {"weights": np.array([1, 0, 1, 1], np.float32), "logprobs": np.array([0, -1, 0, -1], np.float32)}
    advantages = np.array([0, 1, 1, 0], np.float32)
    command = replace(a_pass("importance_sampling", **inputs, advantages=advantages), rollout_correction=REINFORCE)
    checked = check_forward_backward(command, MODEL)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["mask"], np.array([0, 0, 1, 1], np.float32))
    assert checked.data[1].loss_inputs["mask"].dtype == np.float32
    assert checked.rollout_correction == REINFORCE


def test_the_clients_mask_decides() -> None:
    mask = np.array([0, 1, 0, 0.5], np.float32)
    command = replace(a_pass("importance_sampling", mask=mask), rollout_correction=REINFORCE)
    checked = check_forward_backward(command, MODEL)
    np.testing.assert_array_equal(checked.data[1].loss_inputs["mask"], mask)
    np.testing.assert_array_equal(checked.data[0].loss_inputs["mask"], np.ones(4))


@pytest.mark.parametrize("mask", [np.ones(3, np.float32), np.full(4, np.nan, np.float32)])
def test_a_bad_mask_is_refused_where_it_is_looked_at(mask: np.ndarray) -> None:
    command = a_pass("importance_sampling", mask=mask)
    assert "mask" not in check_forward_backward(command, MODEL).data[1].loss_inputs
    assert refusal(replace(command, rollout_correction=REINFORCE)).field == "data[1].loss_fn_inputs.mask"


@pytest.mark.parametrize("loss_fn", [name for name in LOSSES if name != "importance_sampling"])
def test_rollout_correction_is_for_importance_sampling_alone(loss_fn: str) -> None:
    plain = check_forward_backward(a_pass(loss_fn), MODEL)
    corrected = check_forward_backward(replace(a_pass(loss_fn), rollout_correction=PPO_CLIP), MODEL)
    assert corrected.rollout_correction is None
    assert corrected.data[1].loss_inputs.keys() == plain.data[1].loss_inputs.keys()


def test_a_correction_that_clips_has_thresholds() -> None:
    low = np.full(4, 0.1, np.float32)
    command = a_pass("importance_sampling", config={"clip_high_threshold": 3.0}, clip_low_threshold=low)
    checked = check_forward_backward(replace(command, rollout_correction=PPO_CLIP), MODEL)
    assert checked.loss_config == {"clip_low_threshold": 0.8, "clip_high_threshold": 3.0}
    np.testing.assert_array_equal(checked.data[1].loss_inputs["clip_low_threshold"], low)
    np.testing.assert_array_equal(checked.data[0].loss_inputs["clip_low_threshold"], np.full(4, 0.8, np.float32))
    assert checked.data[0].loss_inputs.keys() == checked.data[1].loss_inputs.keys()
    for other in (None, REINFORCE):
        assert refusal(replace(command, rollout_correction=other)).field == "loss_fn_config"


# --- refusals of the pass -----------------------------------------------------------------------------------


def test_an_unknown_loss_is_refused_and_the_served_ones_named() -> None:
    error = refusal(a_pass("nonsense"))
    assert error.field == "loss_fn"
    assert all(name in str(error) for name in ("'nonsense'", *LOSS_SPECS))


def test_stable_reinforce_is_refused_with_the_reason() -> None:
    error = refusal(a_pass("stable_reinforce"))
    assert error.field == "loss_fn"
    assert all(words in str(error) for words in ("stable_reinforce", "unpublished", *LOSS_SPECS))


def test_a_custom_loss_without_a_graph() -> None:
    error = refusal(a_pass("custom"))
    assert error.field == "loss_fn_config.loss_id"
    assert "missing" in str(error)


def test_no_data() -> None:
    error = refusal(ForwardBackward("run", (), "cross_entropy"))
    assert error.field == "data"


@pytest.mark.parametrize(
    ("loss_fn", "config", "field", "named"),
    [
        ("ppo", {"clip": 1.0}, "loss_fn_config", ("'clip'", "clip_low_threshold")),
        ("cross_entropy", {"clip_low_threshold": 1.0}, "loss_fn_config", ("clip_low_threshold", "none")),
        ("ppo", {"clip_low_threshold": float("nan")}, "loss_fn_config.clip_low_threshold", ("nan",)),
        ("ppo", {"clip_high_threshold": float("inf")}, "loss_fn_config.clip_high_threshold", ("inf",)),
        ("gspo", {"clip_high_threshold": 1e300}, "loss_fn_config.clip_high_threshold", ("1e+300",)),
        ("cispo", {"clip_low_threshold": -0.1}, "loss_fn_config.clip_low_threshold", ("-0.1", "0 or more")),
        ("ppo", {"clip_low_threshold": 1.5}, "loss_fn_config.clip_low_threshold", ("1.5", "1.2")),
        ("gspo", {"clip_high_threshold": 0.5}, "loss_fn_config.clip_low_threshold", ("0.8", "0.5")),
        ("dro", {"clip_low_threshold": 0.1}, "loss_fn_config", ("clip_low_threshold", "beta")),
        ("dro", {"beta": float("nan")}, "loss_fn_config.beta", ("nan",)),
        ("dro", {"beta": -1.0}, "loss_fn_config.beta", ("-1.0",)),
        ("importance_sampling", {"clip_low_threshold": 0.1}, "loss_fn_config", ("clip_low_threshold", "none")),
    ],
)
def test_settings(loss_fn: str, config: dict[str, float], field: str, named: tuple[str, ...]) -> None:
    error = refusal(a_pass(loss_fn, config=config))
    assert error.field == field
    assert all(word in str(error) for word in named)


# --- refusals of a datum ------------------------------------------------------------------------------------


def with_entry(value: float) -> np.ndarray:
    return np.array([0.0, 0.0, value, np.nan], np.float32)


@pytest.mark.parametrize(
    ("changes", "field", "named"),
    [
        ({"tokens": []}, "model_input", "no tokens"),
        ({"tokens": [0] * 11}, "model_input", "has 11 tokens; some/model takes at most 10"),
        ({"tokens": [0, 1, 50, 99]}, "model_input", "token 50 at position 2"),
        ({"tokens": [0, -1, 3, 3]}, "model_input", "token -1 at position 1"),
        ({"target_tokens": None}, "loss_fn_inputs.target_tokens", "missing"),
        ({"logprobs": None}, "loss_fn_inputs.logprobs", "missing"),
        ({"advantages": None}, "loss_fn_inputs.advantages", "missing"),
        ({"target_tokens": np.arange(3)}, "loss_fn_inputs.target_tokens", "(3,)"),
        ({"target_tokens": np.zeros((4, 1), np.int64)}, "loss_fn_inputs.target_tokens", "(4, 1)"),
        ({"weights": np.ones(5, np.float32)}, "loss_fn_inputs.weights", "must be (4,)"),
        ({"logprobs": np.ones(0, np.float32)}, "loss_fn_inputs.logprobs", "(0,)"),
        ({"advantages": np.ones((), np.float32)}, "loss_fn_inputs.advantages", "()"),
        ({"target_tokens": np.ones(4, np.float32)}, "loss_fn_inputs.target_tokens", "integers"),
        (
            {"target_tokens": np.array([0, 1, 2, 50])},
            "loss_fn_inputs.target_tokens",
            "token 50 at position 3",
        ),
        (
            {"target_tokens": np.array([-100, 1, 2, 3])},
            "loss_fn_inputs.target_tokens",
            "token -100 at position 0",
        ),
        ({"weights": with_entry(np.inf)}, "loss_fn_inputs.weights", "inf at position 2"),
        ({"logprobs": with_entry(-np.inf)}, "loss_fn_inputs.logprobs", "-inf at position 2"),
        ({"advantages": with_entry(np.nan)}, "loss_fn_inputs.advantages", "nan at position 2"),
    ],
)
def test_a_refusal_names_datum_field_and_reason(changes: dict[str, object], field: str, named: str) -> None:
    error = refusal(a_pass(**changes))
    assert error.datum == 1
    assert error.field == f"data[1].{field}"
    assert str(error).startswith(f"data[1].{field}: ")
    assert named in str(error)
    assert error.category == "user"


@pytest.mark.parametrize(
    ("loss_fn", "changes", "field", "named"),
    [
        ("gspo", {"sequence_ratio_mask": None}, "sequence_ratio_mask", "missing"),
        ("gspo", {"sequence_ratio_mask": np.ones(3, np.float32)}, "sequence_ratio_mask", "must be (4,)"),
        ("gspo", {"sequence_ratio_mask": np.array([1, 1, -1, 0])}, "sequence_ratio_mask", "-1 at position 2"),
        ("gspo", {"sequence_ratio_mask": with_entry(np.nan)}, "sequence_ratio_mask", "nan at position 2"),
        ("dro", {"beta": np.ones(4, np.float32)}, "beta", "set it in loss_fn_config"),
        ("cispo", {"logprobs": None}, "logprobs", "missing"),
        ("dro", {"advantages": None}, "advantages", "missing"),
        ("ppo", {"clip_high_threshold": np.ones(5, np.float32)}, "clip_high_threshold", "must be (4,)"),
        ("ppo", {"clip_high_threshold": with_entry(np.inf)}, "clip_high_threshold", "inf at position 2"),
    ],
)
def test_a_refusal_of_what_only_some_losses_take(
    loss_fn: str, changes: dict[str, object], field: str, named: str
) -> None:
    error = refusal(a_pass(loss_fn, **changes))
    assert (error.field, error.datum) == (f"data[1].loss_fn_inputs.{field}", 1)
    assert named in str(error)


def test_inputs_the_loss_does_not_use_are_not_looked_at() -> None:
    command = a_pass("cross_entropy", logprobs=with_entry(np.nan), advantages=np.ones(99, np.float32))
    assert check_forward_backward(command, MODEL).data[1].loss_inputs.keys() == {"target_tokens", "weights"}


def test_the_first_bad_datum_is_named() -> None:
    bad = Datum(np.array([], np.int32), {})
    error = refusal(ForwardBackward("run", (bad, bad), "cross_entropy"))
    assert error.datum == 0
