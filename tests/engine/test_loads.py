"""What losses take of a micro-batch: many targets and large custom losses are cut, and too much of them is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mint.engine import loads
from mint.engine.core import Datum, ForwardBackward
from mint.engine.loads import PAIRS_PER_TOKEN, datum_work
from mint.engine.loss_parts import Item
from mint.errors import BadRequestError
from tests.engine.conftest import EngineDriver, make_datum
from tests.engine.custom_losses import uploaded
from tests.engine.support import (
    assert_same_gradients,
    assert_same_pass,
    gradients,
    policy_pass,
    trainable,
)

BOUND = 5e-6


def micro_batches(driver: EngineDriver, command: ForwardBackward) -> list[list[Item]]:
    execution = driver.engine._trainer.start([command])
    parts = []
    while not execution.done:
        parts.append(execution._parts.take())
    execution.undo()
    return parts


def num_pairs(part: list[Item]) -> int:
    return sum(item.datum.loss_inputs["target_tokens"].size for item in part)


@pytest.mark.parametrize(("count", "length", "targets"), [(200, 120, 1), (30, 100, 8), (200, 1, 100)])
def test_pairs_of_a_micro_batch_are_bounded(two_runs: EngineDriver, count: int, length: int, targets: int) -> None:
    """Equal sequences are computed once, however many targets they have."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 2048, length).astype(np.int32)
    shape_ = (length, targets)
    inputs = {"target_tokens": rng.integers(0, 2048, shape_), "weights": np.ones(shape_, np.float32)}
    two_runs.engine._trainer._max_batch_tokens = 128
    parts = micro_batches(two_runs, ForwardBackward("run", (Datum(tokens, inputs),) * count, "cross_entropy"))
    assert all(num_pairs(part) <= PAIRS_PER_TOKEN * 128 for part in parts)
    assert sum(map(len, parts)) == count
    assert len(parts) <= -(-count * length * targets // (PAIRS_PER_TOKEN * 128)) + 1


def pairwise(logprobs: Any, weights: Any) -> Any:
    differences = (logprobs[:, None] - logprobs[None, :]).square()
    return (differences.mean(dim=1) * weights).sum(), {"custom/most:mean": differences.max()}


def custom(lengths: list[int], loss: Callable[..., Any] = pairwise) -> ForwardBackward:
    rng = np.random.default_rng(1)
    data = tuple(make_datum(rng, length) for length in lengths)
    return ForwardBackward("run", data, "custom", loss_graph=uploaded(loss, weights=1))


@pytest.mark.parametrize(("limit", "value"), [("STEP_WORK", 8_000), ("STEP_OPERATIONS", 25)])
def test_custom_losses_are_cut_and_stay_what_they_are(
    two_runs: EngineDriver, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    command = custom([30, 20, 30, 7, 60, 30, 1, 12])
    expected, expected_gradients = two_runs.one(command), gradients(two_runs, "run")
    assert len(micro_batches(two_runs, command)) == 1
    trainable(two_runs, "run").gradients.zero_()
    monkeypatch.setattr(loads, limit, value)
    parts = micro_batches(two_runs, command)
    assert len(parts) > 2
    for part in parts:
        works = [datum_work(command, item.datum) for item in part]
        assert len(part) == 1 or sum(works) <= loads.STEP_WORK
        assert len(part) * len(command.loss_graph.nodes) <= max(loads.STEP_OPERATIONS, len(command.loss_graph.nodes))
    assert_same_pass(two_runs.one(command), expected, BOUND)
    assert_same_gradients(gradients(two_runs, "run"), expected_gradients, BOUND)


def test_the_work_of_a_datum_is_what_its_operations_go_through() -> None:
    command = custom([100])
    # difference, square, mean and max go through the square each; the rest goes through single rows
    assert 4 * 100**2 <= datum_work(command, command.data[0]) <= 4 * 100**2 + 10 * 100


def test_a_pass_of_too_much_work_is_refused_and_changes_nothing(
    two_runs: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, other = custom([40] * 6), policy_pass("other", [5, 9], "ppo", np.random.default_rng(2))
    expected = two_runs.one(other)
    two_runs.one(policy_pass("run", [5, 6], "cross_entropy", np.random.default_rng(1)))
    before = gradients(two_runs, "run")
    two_runs.engine._trainer._max_batch_tokens = 80
    monkeypatch.setattr(loads, "PASS_WORK", 5 * datum_work(command, command.data[0]))
    error, answer = two_runs.together([command, other])
    assert isinstance(error, BadRequestError)
    assert error.field == "data"
    assert str(loads.PASS_WORK) in str(error)
    assert torch.equal(gradients(two_runs, "run"), before)
    assert_same_pass(answer, expected, BOUND)
    two_runs.one(replace(command, data=command.data[:5]))


def test_a_custom_loss_that_fails_names_its_datum_when_its_turn_comes(two_runs: EngineDriver) -> None:
    """Its work cannot be told when micro-batches are cut."""
    command = custom([40, 3, 40], lambda logprobs, weights: ((logprobs[30] * weights).sum(), {}))
    (error,) = two_runs.together([command])
    assert isinstance(error, BadRequestError)
    assert error.datum == 1
    assert "data[1]" in str(error)
