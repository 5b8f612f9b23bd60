"""The memory of a pass is bounded by the token budget, and with checkpointing by less; results are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import ForwardBackward
from mint.engine.loss_specs import LOSS_SPECS
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import (
    assert_same_gradients,
    assert_same_pass,
    gradients,
    policy_pass,
    trainable,
    trained_run,
)

BOUND = 5e-6
LENGTHS = [20, 11, 20, 3, 17, 20, 8, 20]


def kept_bytes(driver: EngineDriver, command: ForwardBackward) -> int:
    """Most bytes that autograd holds for a backward pass at any time, over all micro-batches."""
    held = peak = 0

    def pack(tensor: torch.Tensor) -> tuple[torch.Tensor]:
        nonlocal held, peak
        held += tensor.nbytes
        peak = max(peak, held)
        return (tensor,)

    forward = type(driver.engine._trainer._model)._forward

    def counted(*arguments: object) -> torch.Tensor:
        nonlocal held
        held = 0
        result: torch.Tensor = forward(*arguments)
        return result

    with pytest.MonkeyPatch.context() as patched, torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[0]):
        patched.setattr(type(driver.engine._trainer._model), "_forward", counted)
        driver.one(command)
    return peak


def a_driver(folder: Path, **settings: object) -> EngineDriver:
    driver = make_driver(folder, **settings)
    trained_run(driver, "run", shape())
    trainable(driver, "run").gradients.zero_()
    return driver


def a_pass(loss_fn: str = "cross_entropy", repeats: int = 1) -> ForwardBackward:
    return policy_pass("run", LENGTHS * repeats, loss_fn, np.random.default_rng(0))


@pytest.mark.parametrize("loss_fn", sorted(LOSS_SPECS.keys() - {"custom"}))
@pytest.mark.parametrize("budget", [1, 40])
def test_micro_batches_give_the_results_of_one_batch(qwen_dir: Path, loss_fn: str, budget: int) -> None:
    whole, cut = a_driver(qwen_dir, max_batch_tokens=8192), a_driver(qwen_dir, max_batch_tokens=8192)
    cut.engine._trainer._max_batch_tokens = budget
    assert_same_pass(cut.one(a_pass(loss_fn)), whole.one(a_pass(loss_fn)), BOUND)
    assert_same_gradients(gradients(cut, "run"), gradients(whole, "run"), BOUND)


def test_a_long_request_holds_no_more_than_its_budget(qwen_dir: Path) -> None:
    driver = a_driver(qwen_dir, max_batch_tokens=60)
    once, often = kept_bytes(driver, a_pass()), kept_bytes(driver, a_pass(repeats=6))
    assert often <= 1.1 * once  # parts of 57 and of 60 tokens
    whole = a_driver(qwen_dir, max_batch_tokens=8192)
    assert kept_bytes(whole, a_pass(repeats=6)) > 5 * often


def test_checkpointing_keeps_less_and_changes_nothing(qwen_dir: Path) -> None:
    plain, checkpointing = a_driver(qwen_dir), a_driver(qwen_dir, gradient_checkpointing=True)
    assert_same_pass(checkpointing.one(a_pass("ppo")), plain.one(a_pass("ppo")), BOUND)
    assert_same_gradients(gradients(checkpointing, "run"), gradients(plain, "run"), BOUND)
    assert kept_bytes(checkpointing, a_pass()) < 0.5 * kept_bytes(plain, a_pass())
