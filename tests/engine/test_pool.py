"""Buffers side by side: given, given back, and read as one."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.adapters import _as_one
from mint.engine.core import CreateRun, UnloadRun
from mint.engine.pool import SLAB_BUFFERS, SLAB_BYTES, BufferPool
from tests.engine.conftest import make_driver, shape
from tests.engine.support import assert_same_gradients, assert_same_pass, gradients, policy_pass, trainable

CPU = torch.device("cpu")


def test_buffers_of_a_size_lie_side_by_side() -> None:
    pool = BufferPool(CPU)
    taken = [pool.take(5) for _ in range(SLAB_BUFFERS)]
    for place, buffers in enumerate(taken):
        buffers.weights.fill_(place)
        assert not buffers.gradients.any()
    together = _as_one([buffers.weights for buffers in taken])
    assert together is not None
    assert together[:, 0].tolist() == list(range(SLAB_BUFFERS))
    assert _as_one([taken[0].weights, taken[2].weights, taken[4].weights])[:, 0].tolist() == [0, 2, 4]
    assert _as_one([taken[2].weights, taken[1].weights]) is None
    assert _as_one([taken[0].weights, taken[1].weights, taken[3].weights]) is None
    assert _as_one([taken[0].weights, pool.take(5).weights]) is None, "of another piece of memory"


def test_what_nobody_refers_to_is_given_again_with_gradients_of_zero() -> None:
    pool = BufferPool(CPU)
    kept, dropped = pool.take(7), pool.take(7)
    dropped.gradients.fill_(1)
    place = dropped.weights.data_ptr()
    del dropped
    gc.collect()
    again = pool.take(7)
    assert again.weights.data_ptr() == place != kept.weights.data_ptr()
    assert not again.gradients.any()
    del kept, again
    gc.collect()
    assert not pool._slabs[7], "an empty piece of memory is freed"


def test_a_large_buffer_has_a_piece_of_memory_to_itself() -> None:
    pool = BufferPool(CPU)
    buffers = pool.take(SLAB_BYTES // 4 + 1)
    assert buffers.weights.untyped_storage().nbytes() == 4 * buffers.weights.numel()


@pytest.mark.parametrize("gone", [[], [1], [0, 2, 3]], ids=["side by side", "with a gap", "every other"])
def test_runs_side_by_side_in_memory_train_as_alone(qwen_dir: Path, gone: list[int]) -> None:
    """Stacked in place, or as copies where one of them has gone."""
    together, apart = make_driver(qwen_dir), make_driver(qwen_dir)
    runs = [f"run-{number}" for number in range(6)]
    for driver in (together, apart):
        for run in runs:
            driver.one(CreateRun(run, shape(5)))
        for number in gone:
            driver.one(UnloadRun(runs[number]))
    gc.collect()
    left = [run for number, run in enumerate(runs) if number not in gone]
    rng = np.random.default_rng(0)
    for run in left:
        weights = torch.from_numpy(rng.normal(0, 0.05, trainable(apart, run).adapter.flat.shape).astype(np.float32))
        for driver in (together, apart):
            trainable(driver, run).adapter.flat.copy_(weights)
    passes = [policy_pass(run, [6, 6], "cross_entropy", rng) for run in left]
    expected = [apart.one(command) for command in passes]
    for ours, theirs in zip(together.together(passes), expected, strict=True):
        assert_same_pass(ours, theirs, 5e-6)
    for run in left:
        assert_same_gradients(gradients(together, run), gradients(apart, run), 5e-6)
