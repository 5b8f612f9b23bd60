"""Snapshots: a run as it was when its turn came, written while it goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine import engine as engine_module
from mint.engine.core import CreateRun, OptimStep, RestoreRun, Saved, Snapshot
from mint.errors import MintError
from tests.engine.conftest import EngineDriver, shape
from tests.engine.support import LARGE_STEPS, assert_same_pass, policy_pass, trainable, trained_run


def go_on(driver: EngineDriver, run: str) -> object:
    """Two more steps and a pass."""
    rng = np.random.default_rng(7)
    for _ in range(2):
        driver.one(policy_pass(run, [9, 4], "cross_entropy", rng))
        driver.one(OptimStep(run, LARGE_STEPS))
    return driver.one(policy_pass(run, [9, 4], "cross_entropy", rng))


def test_a_run_goes_on_from_a_snapshot_in_every_bit(driver: EngineDriver, tmp_path: Path) -> None:
    trained_run(driver, "run", shape(4))
    saved = driver.one(Snapshot("run", tmp_path / "1"))
    assert isinstance(saved, Saved)
    assert saved.size_bytes == sum(path.stat().st_size for path in (tmp_path / "1").iterdir())
    driver.one(RestoreRun("again", tmp_path / "1", with_optimizer=True))
    assert_same_pass(go_on(driver, "again"), go_on(driver, "run"), 0)
    assert torch.equal(trainable(driver, "again").adapter.flat, trainable(driver, "run").adapter.flat)


def test_steps_that_follow_do_not_wait_and_do_not_show(
    driver: EngineDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are written after the next step has changed the run."""
    trained_run(driver, "run", shape(4))
    before = trainable(driver, "run").adapter.flat.clone()
    may_write, write = threading.Event(), engine_module.write_folder

    def slowly(*arguments: object) -> object:
        assert may_write.wait(60)
        return write(*arguments)

    monkeypatch.setattr(engine_module, "write_folder", slowly)
    assert not list(driver.engine.submit(1000, Snapshot("run", tmp_path / "1")))
    go_on(driver, "run")
    assert not torch.equal(trainable(driver, "run").adapter.flat, before)
    may_write.set()
    number, answer = driver._late.get(timeout=60)
    assert number == 1000
    assert isinstance(answer, Saved)
    driver.one(RestoreRun("then", tmp_path / "1", with_optimizer=True))
    assert torch.equal(trainable(driver, "then").adapter.flat, before)


def test_a_snapshot_that_cannot_be_written_is_an_error(driver: EngineDriver, tmp_path: Path) -> None:
    driver.one(CreateRun("run", shape(4)))
    (tmp_path / "file").write_text("in the way")
    (answer,) = driver.together([Snapshot("run", tmp_path / "file" / "1")])
    assert isinstance(answer, MintError)
    assert "not written" in str(answer)
    driver.one(policy_pass("run", [4], "cross_entropy", np.random.default_rng(0)))
