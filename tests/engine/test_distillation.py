"""Reverse KL against autograd through transformers with PEFT's arithmetic written out: full softmax, no chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mint.engine.core import Distilled, ReverseKL, ReverseKLDatum, Revision
from mint.errors import BadRequestError, NotFoundError
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import MergedModel, assert_same_gradients, export, gradients, trainable, trained_run

BOUND = 2e-5


@pytest.fixture(scope="module")
def driver_(qwen_dir: Path) -> EngineDriver:
    driver = make_driver(qwen_dir, max_batch_tokens=8192)
    trained_run(driver, "student", shape(8))
    trained_run(driver, "teacher", shape(4), seed=1)
    return driver


def make_data(rng: np.random.Generator, targets: list[int]) -> tuple[ReverseKLDatum, ...]:
    """Completions of these lengths; the reference has seen a longer prompt."""
    data = []
    for length in targets:
        completion = rng.integers(0, 2048, length)
        student, reference = (np.concatenate([rng.integers(0, 2048, n), completion[:-1]]) for n in (5, 19))
        weights = rng.normal(size=length).astype(np.float32)
        data.append(ReverseKLDatum(student.astype(np.int32), reference.astype(np.int32), completion, weights))
    return tuple(data)


def expected(
    driver: EngineDriver, folder: Path, data: tuple[ReverseKLDatum, ...], teacher: str | None, temperature: float
) -> tuple[list[float], Tensor]:
    student = MergedModel(folder, trainable(driver, "student"))
    reference = MergedModel(folder, trainable(driver, teacher) if teacher else None)
    losses = []
    for datum in data:
        count = len(datum.targets)
        p = (student.logits(datum.student)[-count:] / temperature).log_softmax(dim=1)
        q = (reference.logits(datum.reference)[-count:].detach() / temperature).log_softmax(dim=1)
        divergence = (p.exp() * (p - q)).sum(dim=1)
        losses.append((divergence * torch.from_numpy(datum.weights)).sum())
    torch.stack(losses).sum().backward()
    assert student.flat is not None
    assert student.flat.grad is not None
    return [float(loss.detach()) for loss in losses], student.flat.grad


@pytest.mark.parametrize("max_batch_tokens", [30, 8192])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("teacher", [None, "teacher", "student"])
def test_losses_and_gradients_equal_autograd(
    driver_: EngineDriver,
    qwen_dir: Path,
    tmp_path: Path,
    teacher: str | None,
    temperature: float,
    max_batch_tokens: int,
) -> None:
    data = make_data(np.random.default_rng(0), [7, 1, 12, 7])
    revision: Revision | None = export(driver_, teacher, tmp_path / "teacher") if teacher else None
    trainable(driver_, "student").gradients.zero_()
    driver_.engine._trainer._max_batch_tokens = max_batch_tokens
    answer = driver_.one(ReverseKL("student", data, revision, temperature))
    losses, gradient = expected(driver_, qwen_dir, data, teacher, temperature)
    assert isinstance(answer, Distilled)
    np.testing.assert_allclose(answer.losses, losses, rtol=BOUND, atol=BOUND)
    assert answer.metrics["loss:sum"] == pytest.approx(sum(losses), rel=BOUND, abs=BOUND)
    assert_same_gradients(gradients(driver_, "student"), gradient, BOUND)


def test_gradients_reach_the_student_alone(driver_: EngineDriver, tmp_path: Path) -> None:
    revision = export(driver_, "teacher", tmp_path / "teacher")
    trainable(driver_, "teacher").gradients.zero_()
    driver_.one(ReverseKL("student", make_data(np.random.default_rng(1), [5]), revision))
    assert not gradients(driver_, "teacher").any()
    assert gradients(driver_, "student").any()


def test_what_fails_changes_nothing(driver_: EngineDriver, tmp_path: Path) -> None:
    data = make_data(np.random.default_rng(2), [5])
    driver_.one(ReverseKL("student", data, None))
    before = gradients(driver_, "student")
    with pytest.raises(BadRequestError):
        driver_.one(ReverseKL("student", data, Revision("gone", tmp_path / "gone")))
    with pytest.raises(NotFoundError):
        driver_.one(ReverseKL("nobody", data, None))
    huge = ReverseKLDatum(data[0].student, data[0].reference, data[0].targets, np.full(5, 3e38, np.float32))
    with pytest.raises(BadRequestError, match="not finite"):
        driver_.one(ReverseKL("student", (data[0], huge), None))
    assert torch.equal(gradients(driver_, "student"), before)
