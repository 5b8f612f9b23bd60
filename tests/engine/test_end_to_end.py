"""Whole passes against float64: transformers with merged weights, the losses written out token by token, autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mint.engine.core import Datum, ForwardBackward, Passed
from mint.engine.loss_specs import check_forward_backward
from mint.engine.losses import LOSSES
from mint.engine.rollout_correction import parse_rollout_correction
from tests.engine.conftest import EngineDriver, make_datum, make_driver, shape
from tests.engine.rollout_reference import expected_terms
from tests.engine.support import MergedModel, assert_same_gradients, gradients, trainable, trained_run
from tests.engine.test_losses import reference

BOUND = 1e-5
CLIP = ("clip_low_threshold", "clip_high_threshold")
SHAPES = {"a": shape(8), "b": shape(3, train_mlp=False)}


@pytest.fixture(scope="module")
def driver_(qwen_dir: Path) -> EngineDriver:
    driver = make_driver(qwen_dir, max_batch_tokens=8192)
    for seed, (run, lora) in enumerate(SHAPES.items()):
        trained_run(driver, run, lora, seed, steps=1)
    return driver


@pytest.fixture(scope="module")
def models(driver_: EngineDriver, qwen_dir: Path) -> dict[str, MergedModel]:
    return {run: MergedModel(qwen_dir, trainable(driver_, run), torch.float64) for run in SHAPES}


def near_policy(model: MergedModel, datum: Datum, rng: np.random.Generator) -> Datum:
    """`logprobs` close to the current ones, so that ratios fall on all sides of what clips, truncates and rejects."""
    with torch.no_grad():
        p = model.logprobs(datum).numpy()
    q = (p + rng.normal(0, 0.3, p.shape)).astype(np.float32)
    return replace(datum, loss_inputs={**datum.loss_inputs, "logprobs": q})


def make_pass(
    driver: EngineDriver,
    models: dict[str, MergedModel],
    run: str,
    loss_fn: str,
    lengths: list[int],
    seed: int,
    **more: Any,
) -> ForwardBackward:
    rng = np.random.default_rng(seed)
    data = [near_policy(models[run], make_datum(rng, length, policy=True), rng) for length in lengths]
    if loss_fn in ("ppo", "cispo", "gspo") and seed % 2:
        for datum in data:  # thresholds of its own for every token
            low = rng.uniform(0.5, 1.0, len(datum.tokens))
            datum.loss_inputs.update({CLIP[0]: low.astype(np.float32), CLIP[1]: (low + 0.3).astype(np.float32)})
    command = ForwardBackward(run, tuple(data), loss_fn, **more)
    return check_forward_backward(command, driver.info)


def inputs_of(command: ForwardBackward) -> tuple[dict[str, Tensor], list[int]]:
    """All datums' inputs in float64, settings spread over the tokens, and the datum of each token."""
    sizes = [len(datum.tokens) for datum in command.data]
    inputs = {
        name: torch.full((sum(sizes),), value, dtype=torch.float64) for name, value in command.loss_config.items()
    }
    for name in command.data[0].loss_inputs.keys() - {"target_tokens"}:
        pieces = [datum.loss_inputs[name].astype(np.float64) for datum in command.data]
        inputs[name] = torch.from_numpy(np.concatenate(pieces))
    return inputs, np.repeat(np.arange(len(sizes)), sizes).tolist()


def terms_of(
    command: ForwardBackward, p: Tensor, inputs: dict[str, Tensor], of_token: list[int], config: Any
) -> Tensor:
    if config is None:
        return torch.stack([reference(command.loss_fn, p, inputs, of_token, t) for t in range(len(p))])
    response = (inputs["weights"] != 0) & ~((inputs["logprobs"] == 0) & (inputs["advantages"] == 0))
    inputs = {**inputs, "mask": response.double()}
    return torch.stack(expected_terms(config, p, inputs, of_token, 1.0)[0])


def assert_equals_reference(
    driver: EngineDriver, models: dict[str, MergedModel], passes: list[ForwardBackward], config: Any = None
) -> None:
    for run in SHAPES:
        trainable(driver, run).gradients.zero_()
        models[run].flat.grad = None
    for answer, command in zip(driver.together(passes), passes, strict=True):
        assert isinstance(answer, Passed), answer
        p = torch.cat([models[command.run_id].logprobs(datum) for datum in command.data])
        inputs, of_token = inputs_of(command)
        loss = (terms_of(command, p, inputs, of_token, config) * inputs["weights"]).sum()
        np.testing.assert_allclose(np.concatenate(answer.logprobs), p.detach().numpy(), rtol=0, atol=BOUND)
        # as far off as log-probabilities make it that are as far off as they may be
        (sensitivity,) = torch.autograd.grad(loss, p, retain_graph=True)
        assert answer.metrics["loss:sum"] == pytest.approx(
            loss.item(), abs=BOUND * (1 + sensitivity.abs().sum().item())
        )
        loss.backward()
    for run in {command.run_id for command in passes}:
        assert_same_gradients(gradients(driver, run), models[run].flat.grad.float(), BOUND)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(sorted(LOSSES))), min_size=1, max_size=4),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    budget=st.sampled_from([15, 8192]),
)
def test_any_mixture_of_losses_and_tenants(
    driver_: EngineDriver,
    models: dict[str, MergedModel],
    losses: list[tuple[str, str]],
    lengths: list[int],
    seed: int,
    budget: int,
) -> None:
    passes = [make_pass(driver_, models, run, loss, lengths, seed + i) for i, (run, loss) in enumerate(losses)]
    driver_.engine._trainer._max_batch_tokens = budget
    assert_equals_reference(driver_, models, passes)


@pytest.mark.parametrize("loss_fn", sorted(LOSSES))
def test_each_loss(driver_: EngineDriver, models: dict[str, MergedModel], loss_fn: str) -> None:
    driver_.engine._trainer._max_batch_tokens = 8192
    assert_equals_reference(driver_, models, [make_pass(driver_, models, "a", loss_fn, [40, 40, 7], 1)])


CORRECTIONS: dict[str, dict[str, Any]] = {
    "token weights": {"rollout_is": "token", "rollout_is_threshold": "1.1", "loss_type": "reinforce"},
    "the published example": {
        "rollout_is": "sequence", "rollout_is_threshold": "1.1", "rollout_rs": "seq_sum_k1",
        "rollout_rs_threshold": "0.5_2.0", "bypass_mode": True, "loss_type": "reinforce",
    },
    "clipped, tokens rejected": {"rollout_rs": "token_k1", "rollout_rs_threshold": "1.3", "loss_type": "ppo_clip",
                                 "rollout_is_threshold": "2.0"},
}  # fmt: skip


@pytest.mark.parametrize("config", CORRECTIONS.values(), ids=CORRECTIONS)
@pytest.mark.parametrize("budget", [15, 8192])
def test_rollout_correction(
    driver_: EngineDriver, models: dict[str, MergedModel], config: dict[str, Any], budget: int
) -> None:
    parsed = parse_rollout_correction(config)
    command = make_pass(driver_, models, "a", "importance_sampling", [9, 5, 12, 4], 3, rollout_correction=parsed)
    driver_.engine._trainer._max_batch_tokens = budget
    if parsed.loss_type == "ppo_clip":
        command = replace(command, loss_config=dict(zip(CLIP, (0.8, 1.2), strict=True)))
    assert_equals_reference(driver_, models, [command], config)
    (answer,) = driver_.together([command])
    assert 0 < answer.metrics["rollout_correction/kept_fraction:mean"] <= 1
    assert answer.metrics["rollout_correction/weight:mean"] > 0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_normalised_weights_do_not_depend_on_micro_batches(
    driver_: EngineDriver, models: dict[str, MergedModel], level: str
) -> None:
    config = {"rollout_is": level, "rollout_is_batch_normalize": True, "loss_type": "reinforce"}
    command = make_pass(
        driver_,
        models,
        "a",
        "importance_sampling",
        [9, 5, 12, 4],
        5,
        rollout_correction=parse_rollout_correction(config),
    )
    answers, grads = [], []
    for budget in (10, 8192):
        driver_.engine._trainer._max_batch_tokens = budget
        trainable(driver_, "a").gradients.zero_()
        answers.append(driver_.one(command))
        grads.append(gradients(driver_, "a"))
    assert answers[0].metrics == pytest.approx(answers[1].metrics, rel=1e-5)
    assert_same_gradients(*grads, BOUND)
    if level == "token":
        assert answers[0].metrics["rollout_correction/weight:mean"] == pytest.approx(1, abs=1e-5)
