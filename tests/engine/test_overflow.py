"""Gradients that overflow under losses that do not: refused, told of the datum, and nobody else's matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mint.engine.core import ForwardBackward, ReverseKL, ReverseKLDatum
from mint.errors import BadRequestError
from tests.engine.conftest import EngineDriver
from tests.engine.support import (
    assert_same_gradients,
    assert_same_pass,
    gradients,
    policy_pass,
    trainable,
)

BOUND = 5e-6


def overflowing(at: int) -> ForwardBackward:
    """Three datums, whose losses are finite; the weights of one are as large as float32 allows."""
    command = policy_pass("run", [9, 4, 7], "cross_entropy", np.random.default_rng(0))
    data = list(command.data)
    huge = np.full(len(data[at].tokens), 1e36, np.float32)
    data[at] = replace(data[at], loss_inputs={**data[at].loss_inputs, "weights": huge})
    return replace(command, data=tuple(data))


@pytest.mark.parametrize("budget", [1, 4096])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_steepest_datum_is_named_and_nothing_changes(two_runs: EngineDriver, at: int, budget: int) -> None:
    two_runs.one(policy_pass("run", [5, 6], "cross_entropy", np.random.default_rng(1)))
    before = gradients(two_runs, "run")
    two_runs.engine._trainer._max_batch_tokens = budget
    (error,) = two_runs.together([overflowing(at)])
    assert isinstance(error, BadRequestError)
    assert (error.field, error.datum) == (f"data[{at}]", at)
    assert "overflow" in str(error)
    assert "1e+36" in str(error)
    assert torch.equal(gradients(two_runs, "run"), before)
    assert np.isfinite(two_runs.one(replace(overflowing(at), forward_only=True)).metrics["loss:sum"])


def test_no_datum_is_named_where_the_weights_have_diverged(two_runs: EngineDriver) -> None:
    trainable(two_runs, "run").gradients.fill_(1e25)  # whose norm float32 does not hold
    trainable(two_runs, "run")._untouched = False
    (error,) = two_runs.together([policy_pass("run", [5, 6], "cross_entropy", np.random.default_rng(1))])
    assert isinstance(error, BadRequestError)
    assert (error.field, error.datum) == ("data", None)


def test_a_tenant_in_the_same_batch_is_answered(two_runs: EngineDriver) -> None:
    command = policy_pass("other", [8, 8, 3], "ppo", np.random.default_rng(2))
    expected = two_runs.one(command), gradients(two_runs, "other")
    for run in ("run", "other"):
        trainable(two_runs, run).gradients.zero_()
    error, passed, again = two_runs.together([overflowing(1), command, replace(command, run_id="run")])
    assert isinstance(error, BadRequestError)
    assert error.datum == 1
    assert_same_pass(passed, expected[0], BOUND)
    assert_same_gradients(gradients(two_runs, "other"), expected[1], BOUND)
    # nor is the run's own next pass lost
    alone = two_runs.one(replace(command, run_id="run"))
    assert_same_pass(again, alone, BOUND)


def test_a_distillation_names_its_datum_too(two_runs: EngineDriver) -> None:
    rng = np.random.default_rng(3)

    def datum(weight: float) -> ReverseKLDatum:
        tokens = rng.integers(0, 2048, 6).astype(np.int32)
        return ReverseKLDatum(tokens, tokens, tokens.astype(np.int64), np.full(6, weight, np.float32))

    (error,) = two_runs.together([ReverseKL("run", (datum(1.0), datum(1e36)), None, 1.0)])
    assert isinstance(error, BadRequestError)
    assert (error.field, error.datum) == ("data[1]", 1)
