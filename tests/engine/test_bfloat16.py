"""A base model in bfloat16 with float32 adapters: close to the float32 engine, without losing small steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import AdamParams, CreateRun, ForwardBackward, OptimStep, Passed, Sample, Sampled, SamplingParams
from tests.engine.conftest import make_driver, shape
from tests.engine.support import export, gradients, next_token_datum, policy_pass, trainable, trained_run


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("lengths", [[20, 20, 9], [150]], ids=["short segments", "a long one"])
def test_close_to_float32(qwen_dir: Path, lengths: list[int]) -> None:
    half, full = make_driver(qwen_dir, dtype="bfloat16"), make_driver(qwen_dir)
    assert half.engine._trainer._model.dtype == torch.bfloat16
    for driver in (half, full):
        for seed, run in enumerate(("a", "b")):
            trained_run(driver, run, shape(4), seed)
    # the same weights on both sides
    for run in ("a", "b"):
        trainable(half, run).adapter.flat.copy_(trainable(full, run).adapter.flat)
    rng = np.random.default_rng(0)
    passes = [policy_pass(run, lengths, "cross_entropy", rng) for run in ("a", "b")]
    for ours, theirs in zip(half.together(passes), full.together(passes), strict=True):
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert np.abs(a - b).mean() < 0.1
    for run in ("a", "b"):
        assert gradients(half, run).dtype == torch.float32
        assert cosine(gradients(half, run), gradients(full, run)) > 0.999


def test_small_steps_are_not_lost_to_rounding(qwen_dir: Path) -> None:
    driver = make_driver(qwen_dir, dtype="bfloat16")
    driver.one(CreateRun("run", shape(4)))
    before = trainable(driver, "run").adapter.flat.clone()
    driver.one(policy_pass("run", [20], "cross_entropy", np.random.default_rng(1)))
    driver.one(OptimStep("run", AdamParams(learning_rate=1e-6)))
    moved = trainable(driver, "run").adapter.flat - before
    assert float(moved.abs().max()) == pytest.approx(1e-6, rel=0.1)


def test_samples_have_the_logprobs_of_forward(qwen_dir: Path, tmp_path: Path) -> None:
    """To what bfloat16 rounds activations to, of which batches of other shapes make different sums."""
    driver = make_driver(qwen_dir, dtype="bfloat16")
    trained_run(driver, "run", shape(4))
    revision = export(driver, "run", tmp_path / "revision")
    prompt = np.arange(5, 25, dtype=np.int32)
    sampled = driver.one(Sample(revision, prompt, 8, SamplingParams(max_tokens=60, seed=0)))
    assert isinstance(sampled, Sampled)
    differences = []
    for sequence in sampled.sequences:
        datum = next_token_datum(np.concatenate([prompt, sequence.tokens]))
        passed = driver.one(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True))
        assert isinstance(passed, Passed)
        differences.append(np.abs(sequence.logprobs - passed.logprobs[0][len(prompt) - 1 :]))
    assert np.mean(differences) < 2e-2
    assert np.mean(differences) > 0, "a comparison of a thing with itself"
