"""What a pass is refused for, and that the refusal names the datum and the field."""

from __future__ import annotations

import numpy as np
import pytest

from mint.engine.core import Datum, ForwardBackward, ModelInfo
from mint.engine.loss_specs import LOSS_SPECS, check_forward_backward
from mint.engine.losses import LOSSES
from mint.errors import BadRequestError

MODEL = ModelInfo("some/model", "", "Some", 50, 10, 10, (2,), 32, 1000)


def good_inputs(length: int = 4) -> dict[str, np.ndarray]:
    return {
        "target_tokens": np.arange(length),
        "weights": np.full(length, 0.5, np.float32),
        "logprobs": np.full(length, -1.0, np.float32),
        "advantages": np.full(length, 2.0, np.float32),
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
    assert LOSSES.keys() == LOSS_SPECS.keys()


@pytest.mark.parametrize("loss_fn", LOSS_SPECS)
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
    }


def test_integer_weights_are_numbers_too() -> None:
    checked = check_forward_backward(a_pass(weights=np.array([0, 1, 1, 0])), MODEL)
    assert checked.data[1].loss_inputs["weights"].dtype == np.float32


@pytest.mark.parametrize("length", [1, 10])
def test_lengths_up_to_the_limit(length: int) -> None:
    command = ForwardBackward("run", (Datum(np.zeros(length, np.int32), good_inputs(length)),), "ppo")
    assert check_forward_backward(command, MODEL).num_tokens == length


# --- refusals of the pass -----------------------------------------------------------------------------------


def test_an_unknown_loss_is_refused_and_the_served_ones_named() -> None:
    error = refusal(a_pass("stable_reinforce"))
    assert error.field == "loss_fn"
    assert all(name in str(error) for name in ("stable_reinforce", *LOSS_SPECS))


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


def test_inputs_the_loss_does_not_use_are_not_looked_at() -> None:
    command = a_pass("cross_entropy", logprobs=with_entry(np.nan), advantages=np.ones(99, np.float32))
    assert check_forward_backward(command, MODEL).data[1].loss_inputs.keys() == {"target_tokens", "weights"}


def test_the_first_bad_datum_is_named() -> None:
    bad = Datum(np.array([], np.int32), {})
    error = refusal(ForwardBackward("run", (bad, bad), "cross_entropy"))
    assert error.datum == 0
