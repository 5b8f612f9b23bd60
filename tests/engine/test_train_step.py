"""A pass and its optimizer step as one command: both halves, or neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import AdamParams, ForwardBackward, OptimStep, Passed, Stepped, TrainStep
from mint.errors import BadRequestError
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import assert_same_pass, gradients, policy_pass, trained_run, weights

ADAM = AdamParams(learning_rate=1e-2, grad_clip_norm=0.5)


@pytest.fixture
def pair(qwen_dir: Path) -> tuple[EngineDriver, EngineDriver]:
    drivers = make_driver(qwen_dir), make_driver(qwen_dir)
    for driver in drivers:
        trained_run(driver, "run", shape())
    return drivers


def passes(seed: int = 0) -> list[ForwardBackward]:
    rng = np.random.default_rng(seed)
    return [policy_pass("run", [9, 4], "importance_sampling", rng) for _ in range(3)]


def overflowing(command: ForwardBackward) -> ForwardBackward:
    """Its second datum's ratio is infinite."""
    first, second = command.data
    inputs = {**second.loss_inputs, "logprobs": np.full(len(second.tokens), -1e4, np.float32)}
    return replace(command, data=(first, replace(second, loss_inputs=inputs)))


def test_equals_its_two_halves_and_has_the_metrics_of_both(pair: tuple[EngineDriver, EngineDriver]) -> None:
    ours, theirs = pair
    commands = passes()
    answers = ours.together([TrainStep(command, ADAM) for command in commands])
    for answer, command in zip(answers, commands, strict=True):
        passed, stepped = theirs.one(command), theirs.one(OptimStep("run", ADAM))
        assert isinstance(answer, Passed)
        assert isinstance(stepped, Stepped)
        expected = passed.metrics | {f"optim/{name}:unique": value for name, value in stepped.metrics.items()}
        assert_same_pass(answer, replace(passed, metrics=expected), 1e-6)
    assert torch.equal(weights(ours, "run"), weights(theirs, "run"))


def test_takes_earlier_gradients_along(pair: tuple[EngineDriver, EngineDriver]) -> None:
    ours, theirs = pair
    first, second, _ = passes(1)
    ours.one(first)
    ours.one(TrainStep(second, ADAM))
    for command in (first, second, OptimStep("run", ADAM)):
        theirs.one(command)
    assert torch.equal(weights(ours, "run"), weights(theirs, "run"))


def test_a_pass_that_fails_leaves_weights_gradients_and_step_count(pair: tuple[EngineDriver, EngineDriver]) -> None:
    driver, _ = pair
    first, second, third = passes(2)
    driver.one(first)
    before = weights(driver, "run"), gradients(driver, "run")

    failed, stepped = driver.together([TrainStep(overflowing(second), ADAM), TrainStep(third, ADAM)])

    assert isinstance(failed, BadRequestError)
    assert failed.field == "data[1]"
    assert isinstance(stepped, Passed)
    assert stepped.metrics["optim/step:unique"] == 3  # two steps of the trained run, and this one
    driver_, other = pair[1], (third, OptimStep("run", ADAM))
    driver_.one(first)
    assert torch.equal(before[0], weights(driver_, "run"))
    assert torch.equal(before[1], gradients(driver_, "run"))
    for command in other:
        driver_.one(command)
    assert torch.equal(weights(driver, "run"), weights(driver_, "run"))


def test_batches_with_the_passes_of_other_runs(pair: tuple[EngineDriver, EngineDriver]) -> None:
    ours, theirs = pair
    for driver in pair:
        trained_run(driver, "other", shape(4), seed=1)
    command = passes(3)[0]
    other = replace(passes(4)[0], run_id="other")
    mine, his = ours.together([TrainStep(command, ADAM), other])
    assert_same_pass(his, theirs.one(other), 5e-6)
    assert isinstance(mine, Passed)
    assert gradients(ours, "other").any()
    assert not gradients(ours, "run").any()


def test_an_overflowing_loss_is_refused_and_changes_nothing(pair: tuple[EngineDriver, EngineDriver]) -> None:
    driver, _ = pair
    first, second, _ = passes(5)
    driver.one(first)
    before = gradients(driver, "run")
    with pytest.raises(BadRequestError, match=r"data\[1\].*not finite"):
        driver.one(overflowing(second))
    assert torch.equal(gradients(driver, "run"), before)
