"""Rollout correction asked for from Python, against a live server."""

from __future__ import annotations

import asyncio
import math

import pytest

import mint
import mint.mint as mintx
from mint import types
from mint.tiny import NAME

from .sdk import SECONDS, batch, logprobs_of

pytestmark = pytest.mark.filterwarnings("ignore:DEPRECATED")

REJECTS_HALF = mintx.RolloutCorrectionConfig(
    rollout_is="token", rollout_rs="token_k1", rollout_rs_threshold=1.5, loss_type="reinforce"
)
KEPT, WEIGHT = "rollout_correction/kept_fraction:mean", "rollout_correction/weight:mean"


def off_policy(run: mint.TrainingClient) -> list[types.Datum]:
    """Every second token was likelier, by a factor of e, for the policy that drew it."""
    data = batch(1)
    logprobs = logprobs_of(run.forward(data, "cross_entropy").result(SECONDS))
    return [
        types.Datum(
            model_input=datum.model_input,
            loss_fn_inputs={
                "target_tokens": datum.loss_fn_inputs["target_tokens"],
                "logprobs": [value + place % 2 for place, value in enumerate(mine)],
                "advantages": [1.0] * len(mine),
            },
        )
        for datum, mine in zip(data, logprobs, strict=True)
    ]


def fraction(data: list[types.Datum]) -> float:
    lengths = [len(datum.loss_fn_inputs["advantages"].data) for datum in data]
    return sum((length + 1) // 2 for length in lengths) / sum(lengths)


def test_a_run_is_made_with_it_and_its_checkpoints_have_it(alice: mint.ServiceClient) -> None:
    run = mintx.create_lora_training_client(
        alice, NAME, 4, 7, user_metadata={"a": "b"}, rollout_correction_config=REJECTS_HALF
    ).result(SECONDS)
    assert run.get_info().lora_rank == 4
    data = off_policy(run)
    passed = run.forward_backward(data, "importance_sampling").result(SECONDS).metrics
    kept = fraction(data)
    assert passed[KEPT] == pytest.approx(kept)
    assert passed[WEIGHT] == pytest.approx(kept + (1 - kept) / math.e, rel=1e-4)
    run.optim_step(types.AdamParams()).result(SECONDS)
    path = run.save_state("corrected").result(SECONDS).path
    again = alice.create_training_client_from_state(path).result(SECONDS)
    assert KEPT in again.forward(data, "importance_sampling").result(SECONDS).metrics
    plain = alice.create_lora_training_client(NAME, rank=4, seed=7).result(SECONDS)
    assert KEPT not in plain.forward_backward(data, "importance_sampling").result(SECONDS).metrics


def test_it_can_be_awaited_and_numbers_go_on(alice: mint.ServiceClient) -> None:
    async def make() -> list[mint.TrainingClient]:
        made = mintx.create_lora_training_client(alice, NAME, 4, rollout_correction_config=REJECTS_HALF)
        return [await alice.create_lora_training_client(NAME, rank=4), await made]

    plain, corrected = asyncio.run(make())
    assert plain.model_id != corrected.model_id
    assert corrected.model_id.rpartition(":")[0] == plain.model_id.rpartition(":")[0]


def test_what_the_server_refuses_the_future_raises(alice: mint.ServiceClient) -> None:
    with pytest.raises(mint.BadRequestError, match=r"lora_config\.rank"):
        mintx.create_lora_training_client(alice, NAME, 1 << 20, rollout_correction_config=REJECTS_HALF).result(SECONDS)
