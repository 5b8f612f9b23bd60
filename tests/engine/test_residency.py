"""More runs than fit the device: they come and go between memory and disk, and nobody notices."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import Command, CreateRun, OptimStep, Passed, SaveState, UnloadRun
from mint.engine.optimizer import TrainableAdapter
from mint.engine.pool import SLAB_BUFFERS
from mint.errors import NotFoundError
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import LARGE_STEPS, assert_same_pass, policy_pass

RUNS = [f"run-{number}" for number in range(5)]


def loop(run: str) -> list[Command]:
    """Some steps of training, with gradients left over at the end."""
    rng = np.random.default_rng(RUNS.index(run))
    commands: list[Command] = [CreateRun(run, shape(2 + RUNS.index(run)))]
    for length in (5, 9, 7):
        commands += [policy_pass(run, [length, 3], "ppo", rng), OptimStep(run, LARGE_STEPS)]
    return [*commands, policy_pass(run, [8], "cross_entropy", rng)]


def interleaved() -> list[Command]:
    return [command for commands in zip(*map(loop, RUNS), strict=True) for command in commands]


def one_by_one(driver: EngineDriver, commands: list[Command]) -> list[object]:
    return [driver.one(command) for command in commands]


def state(driver: EngineDriver, run: str, folder: Path) -> dict[str, bytes]:
    driver.one(SaveState(run, folder))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("limit", [1, 2])
def test_runs_that_come_and_go_train_as_if_they_stayed(qwen_dir: Path, tmp_path: Path, limit: int) -> None:
    few, many = make_driver(qwen_dir, max_resident_runs=limit), make_driver(qwen_dir)
    answers, expected = one_by_one(few, interleaved()), one_by_one(many, interleaved())
    assert few.engine._trainer._runs.num_present == limit
    for ours, theirs in zip(answers, expected, strict=True):
        if isinstance(theirs, Passed):
            assert_same_pass(ours, theirs, bound=0)
        else:
            assert ours == theirs
    for run in RUNS:
        assert state(few, run, tmp_path / "few" / run) == state(many, run, tmp_path / "many" / run)
        assert torch.equal(few.engine._trainer.run(run).gradients, many.engine._trainer.run(run).gradients)
        assert few.engine._trainer.run(run).gradients.any()


def test_a_batch_has_no_more_runs_than_fit(qwen_dir: Path) -> None:
    few, many = make_driver(qwen_dir, max_resident_runs=2), make_driver(qwen_dir)
    answers, expected = few.together(interleaved()), many.together(interleaved())
    assert few.engine._trainer._runs.num_present == 2
    for command, ours, theirs in zip(interleaved(), answers, expected, strict=True):
        if not isinstance(command, CreateRun | OptimStep):
            assert_same_pass(ours, theirs, 1e-3)  # batches differ, and ppo's clipping makes little differences larger


def test_a_parked_run_can_be_unloaded_and_made_anew(qwen_dir: Path) -> None:
    driver = make_driver(qwen_dir, max_resident_runs=1)
    for run in RUNS:
        driver.one(CreateRun(run, shape(2)))
    folder = Path(driver.engine._trainer._runs._folder.name)
    assert len(list(folder.iterdir())) == len(RUNS) - 1
    driver.one(UnloadRun(RUNS[0]))
    driver.one(CreateRun(RUNS[1], shape(4)))
    assert len(list(folder.iterdir())) == len(RUNS) - 2
    with pytest.raises(NotFoundError):
        driver.one(OptimStep(RUNS[0], LARGE_STEPS))
    assert driver.engine._trainer.run(RUNS[1]).adapter.layout.shape.rank == 4


def test_an_idle_run_costs_its_four_buffers_and_a_parked_one_nothing(qwen_dir: Path) -> None:
    """As many as share a piece of memory, and some more."""
    driver = make_driver(qwen_dir, max_resident_runs=SLAB_BUFFERS)
    gc.collect()
    before = tensor_bytes()
    for number in range(SLAB_BUFFERS + 3):
        run = f"idle-{number}"
        driver.one(CreateRun(run, shape(13)))
        driver.one(policy_pass(run, [9], "cross_entropy", np.random.default_rng(0)))
        driver.one(OptimStep(run, LARGE_STEPS))
    gc.collect()
    adapter = driver.engine._trainer.run(run)
    assert isinstance(adapter, TrainableAdapter)
    expected = SLAB_BUFFERS * 4 * adapter.adapter.flat.nbytes
    # the newcomer is made before another leaves
    assert expected <= tensor_bytes() - before <= expected + 2 * SLAB_BUFFERS * adapter.adapter.flat.nbytes + 4096


def tensor_bytes() -> int:
    """Of all tensors alive, each storage once."""
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing.layout == torch.strided]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
