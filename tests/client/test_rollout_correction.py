"""The typed configuration: it takes what the server takes, and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mint.mint as mintx
from mint.engine.rollout_correction import REJECTIONS, parse_rollout_correction
from mint.errors import BadRequestError
from mint.mint.rollout_correction import ESTIMATORS

PUBLISHED: dict[str, Any] = {
    "rollout_is": "sequence",
    "rollout_is_threshold": 1.1,
    "rollout_rs": "seq_sum_k1",
    "rollout_rs_threshold": "0.5_2.0",
    "bypass_mode": True,
    "loss_type": "reinforce",
}
THRESHOLDS = (2.0, 1, 0.5, "0.5_2.0", "2_0.5", " 1.5", "1_2_3", "0", "-1", "inf", "nan", "", "x", True, [1], 0.0)
LISTS = (None, "", "2", "0.5_2.0", "0.5", "2,3", "0.5_2.0, 3", "2,,3", 2.0, 1, True, "1_2")


def taken_by_the_server(config: dict[str, Any]) -> bool:
    try:
        parse_rollout_correction(config)
    except BadRequestError:
        return False
    return True


def taken_here(config: dict[str, Any]) -> bool:
    try:
        sent = asdict(mintx.RolloutCorrectionConfig(**config))
    except (ValueError, TypeError):
        return False
    assert parse_rollout_correction(sent) == parse_rollout_correction(config)
    return True


def test_the_published_example_and_the_defaults() -> None:
    assert asdict(mintx.RolloutCorrectionConfig(**PUBLISHED)) == {**PUBLISHED, "rollout_is_batch_normalize": False}
    assert parse_rollout_correction(asdict(mintx.RolloutCorrectionConfig())) == parse_rollout_correction({})
    assert set(ESTIMATORS) == REJECTIONS.keys()


NAMES = st.sampled_from([*ESTIMATORS, "seq_max_k1", "token", ""])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rollout_is": st.sampled_from([None, "token", "sequence", "word", True, 1]),
            "rollout_is_threshold": st.sampled_from(THRESHOLDS),
            "rollout_is_batch_normalize": st.sampled_from([True, False, 1, "yes"]),
            "rollout_rs": st.none() | st.lists(NAMES, max_size=2).map(",".join) | st.sampled_from([3, ["token_k1"]]),
            "rollout_rs_threshold": st.sampled_from(LISTS),
            "bypass_mode": st.sampled_from([True, False, 1]),
            "loss_type": st.sampled_from(["reinforce", "ppo_clip", "ppo", 7]),
        },
    )
)
def test_it_takes_what_the_server_takes(config: dict[str, Any]) -> None:
    assert taken_here(config) == taken_by_the_server(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rollout_is", "word"), ("rollout_is_threshold", "2_1"), ("rollout_rs", "token_k4"), ("bypass_mode", False)],
)
def test_what_is_wrong_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        mintx.RolloutCorrectionConfig(**{**PUBLISHED, field: value})


def test_a_plain_dictionary_is_not_sent() -> None:
    with pytest.raises(TypeError, match="RolloutCorrectionConfig"):
        mintx.create_lora_training_client(None, "base", rollout_correction_config=PUBLISHED)  # type: ignore[arg-type]
