"""More runs than fit the device: they come and go between memory and disk, and nobody notices."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import Command, CreateRun, OptimStep, Passed, SaveState, UnloadRun
from mint.engine.failures import LostRunError
from mint.engine.optimizer import TrainableAdapter
from mint.engine.pool import SLAB_BUFFERS
from mint.errors import MintError, NotFoundError
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
    assert len(few.engine._trainer._runs._present) == limit
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
    assert len(few.engine._trainer._runs._present) == 2
    for command, ours, theirs in zip(interleaved(), answers, expected, strict=True):
        if not isinstance(command, CreateRun | OptimStep):
            assert_same_pass(ours, theirs, 1e-3)  # batches differ, and ppo's clipping makes little differences larger


def test_a_parked_run_can_be_unloaded_and_made_anew(qwen_dir: Path) -> None:
    driver = make_driver(qwen_dir, max_resident_runs=1)
    for run in RUNS:
        driver.one(CreateRun(run, shape(2)))
    folder = driver.engine._trainer._runs._folder
    assert folder is not None
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


def test_a_parked_file_has_one_run_and_no_more(qwen_dir: Path, tmp_path: Path) -> None:
    """Others lie in the same piece of memory."""
    driver = make_driver(qwen_dir, max_resident_runs=1, scratch_dir=tmp_path)
    driver.one(CreateRun("a", shape(2)))
    driver.one(a_pass())
    driver.one(OptimStep("a", LARGE_STEPS))
    driver.one(a_pass())
    size = driver.engine._trainer.run("a").adapter.flat.nbytes
    driver.one(CreateRun("b", shape(2)))
    (file,) = tmp_path.rglob("*.pt")
    assert 4 * size <= file.stat().st_size <= 4 * size + 16384


def test_there_are_never_more_runs_than_the_limit(qwen_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver(qwen_dir, max_resident_runs=2)
    residents = driver.engine._trainer._runs
    bring_back, counts = residents._bring_back, []

    def counted(run_id: str) -> None:
        bring_back(run_id)
        counts.append(len(residents._present))

    monkeypatch.setattr(residents, "_bring_back", counted)
    driver.together(interleaved())
    assert max(counts) == 2


def a_pass() -> Command:
    return policy_pass("a", [5], "cross_entropy", np.random.default_rng(0))


@pytest.mark.parametrize("command", [a_pass(), CreateRun("c", shape())], ids=["pass", "create"])
def test_a_full_disk_fails_what_needs_room_and_loses_nothing(
    qwen_dir: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    driver = make_driver(qwen_dir, max_resident_runs=1)
    driver.one(CreateRun("a", shape()))
    driver.one(CreateRun("b", shape()))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TrainableAdapter, "park", full)
        (refused,) = driver.together([command])
    assert isinstance(refused, MintError)
    assert "No space left" in str(refused)
    assert not driver.engine._trainer.has("c")
    driver.one(a_pass())
    driver.one(OptimStep("b", LARGE_STEPS))


@pytest.mark.parametrize("command", [a_pass(), OptimStep("a", LARGE_STEPS)], ids=["pass", "step"])
def test_a_run_that_cannot_be_read_back_ends_the_worker(qwen_dir: Path, tmp_path: Path, command: Command) -> None:
    """The server then has another worker compute it again; to go on without it would be to lose it."""
    driver = make_driver(qwen_dir, max_resident_runs=1, scratch_dir=tmp_path)
    driver.one(CreateRun("a", shape()))
    driver.one(CreateRun("b", shape()))
    (file,) = tmp_path.rglob("*.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LostRunError, match="run a "):
        driver.together([command])


def test_files_of_a_worker_that_was_killed_are_removed(qwen_dir: Path, tmp_path: Path) -> None:
    left = tmp_path / "random" / "7.pt"
    left.parent.mkdir()
    left.write_bytes(b"of the last process")
    make_driver(qwen_dir, scratch_dir=tmp_path)
    assert not left.exists()
