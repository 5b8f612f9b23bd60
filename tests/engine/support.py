"""What several tests of the engine need beside the driver: trained runs, passes, views of a run's state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mint.engine.core import (
    AdamParams,
    CreateRun,
    Datum,
    ExportRevision,
    ForwardBackward,
    LoraShape,
    OptimStep,
    Passed,
    Revision,
)
from mint.engine.optimizer import TrainableAdapter
from tests.engine.conftest import EngineDriver, make_datum

PPO = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
LARGE_STEPS = AdamParams(learning_rate=3e-2)


def trainable(driver: EngineDriver, run: str) -> TrainableAdapter:
    return driver.engine._trainer.run(run)


def weights(driver: EngineDriver, run: str) -> Tensor:
    return trainable(driver, run).adapter.flat.clone()


def gradients(driver: EngineDriver, run: str) -> Tensor:
    return trainable(driver, run).gradients.clone()


def trained_run(driver: EngineDriver, run: str, shape: LoraShape, seed: int = 0, steps: int = 2) -> None:
    """B starts at zero: a few large steps make both factors matter."""
    rng = np.random.default_rng(seed)
    driver.one(CreateRun(run, shape))
    for _ in range(steps):
        driver.one(ForwardBackward(run, (make_datum(rng, 12),), "cross_entropy"))
        driver.one(OptimStep(run, LARGE_STEPS))


def export(driver: EngineDriver, run: str, folder: Path) -> Revision:
    folder.mkdir(parents=True)
    driver.one(ExportRevision(run, folder, key=str(folder)))
    return Revision(str(folder), folder)


def next_token_datum(tokens: np.ndarray) -> Datum:
    """Every token but the first is a target."""
    inputs = {
        "target_tokens": tokens[1:].astype(np.int64),
        "weights": np.ones(len(tokens) - 1, np.float32),
    }
    return Datum(tokens[:-1].astype(np.int32), inputs)


def policy_pass(
    run: str, lengths: list[int], loss_fn: str, rng: np.random.Generator, *, forward_only: bool = False
) -> ForwardBackward:
    data = tuple(make_datum(rng, length, policy=True) for length in lengths)
    return ForwardBackward(run, data, loss_fn, PPO if loss_fn == "ppo" else {}, forward_only)


def assert_same_pass(ours: object, expected: object, bound: float) -> None:
    assert isinstance(ours, Passed), ours
    assert isinstance(expected, Passed), expected
    for a, b in zip(ours.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)
    assert ours.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=bound, atol=bound, err_msg=name)


def assert_same_gradients(ours: Tensor, expected: Tensor, bound: float) -> None:
    """Within `bound` of the largest entry."""
    assert torch.isfinite(expected).all()
    assert expected.any(), "a comparison of zeros"
    assert float((ours - expected).abs().max()) <= bound * float(expected.abs().max())
