"""The engine on a CUDA device against the engine on the CPU; run by `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import ForwardBackward, OptimStep, Passed, Sample, Sampled, SamplingParams
from mint.engine.loss_specs import LOSS_SPECS
from mint.models.attention import PackedCausal
from mint.models.flash import Attend
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import LARGE_STEPS, export, gradients, next_token_datum, policy_pass, trainable, trained_run
from tests.engine.test_families import make_family
from tests.engine.test_prefixes import group
from tests.models.test_attention import Tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = [60, 60, 31, 7, 60]


def drivers(folder: Path, **settings: object) -> tuple[EngineDriver, EngineDriver]:
    """On CUDA and on the CPU, with the same trained runs."""
    cuda, cpu = make_driver(folder, device="cuda", **settings), make_driver(folder, device="cpu")
    for driver in (cuda, cpu):
        trained_run(driver, "a", shape(8))
        trained_run(driver, "b", shape(4, train_mlp=False), seed=1)
    for run in ("a", "b"):
        trainable(cuda, run).adapter.flat.copy_(trainable(cpu, run).adapter.flat)
    return cuda, cpu


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().cpu(), b.double().cpu(), dim=0))


@pytest.mark.parametrize("loss_fn", sorted(LOSS_SPECS.keys() - {"custom"}))
def test_float32_equals_the_cpu(qwen_dir: Path, loss_fn: str) -> None:
    cuda, cpu = drivers(qwen_dir, dtype="float32")
    rng = np.random.default_rng(0)
    passes = [policy_pass(run, LENGTHS, loss_fn, rng) for run in ("a", "b")]
    for ours, theirs in zip(cuda.together(passes), cpu.together(passes), strict=True):
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)
    for run in ("a", "b"):
        assert cosine(gradients(cuda, run), gradients(cpu, run)) > 0.9999
        step = OptimStep(run, LARGE_STEPS)
        assert cuda.one(step).metrics["grad_norm"] == pytest.approx(cpu.one(step).metrics["grad_norm"], rel=1e-3)


def test_bfloat16_is_close_to_float32_and_shares_prefixes(qwen_dir: Path) -> None:
    cuda, cpu = drivers(qwen_dir)
    assert cuda.engine._trainer._model.dtype == torch.bfloat16
    command = ForwardBackward("a", group(np.random.default_rng(2), [60, 60, 50, 60], prompt=40), "importance_sampling")
    ours, theirs = cuda.one(command), cpu.one(command)
    for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert np.abs(a - b).mean() < 0.1
    assert cosine(gradients(cuda, "a"), gradients(cpu, "a")) > 0.99


def test_bfloat16_experts_are_close_to_float32(tmp_path: Path) -> None:
    """Their sizes let all experts of a layer be one product."""
    cuda, cpu = drivers(make_family("qwen3-moe", tmp_path))
    rng = np.random.default_rng(4)
    passes = [policy_pass(run, LENGTHS, "cross_entropy", rng) for run in ("a", "b")]
    for ours, theirs in zip(cuda.together(passes), cpu.together(passes), strict=True):
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert np.abs(a - b).mean() < 0.1
    assert cosine(gradients(cuda, "a"), gradients(cpu, "a")) > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_equals_the_cpu(dtype: torch.dtype, window: int | None) -> None:
    tree = Tree([], [], [])
    for root in [(30, [4, 4, (20, [5, 6])]), 9, 40] if window is None else [9, 40, 40]:
        tree.grow(root, [])
    torch.manual_seed(0)
    inputs = [torch.randn(sum(tree.lengths), heads, 32) for heads in (8, 2, 2)]
    upstream = torch.randn(sum(tree.lengths), 8, 32)
    results = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        q, k, v = (t.to(device, kind).requires_grad_() for t in inputs)
        out = PackedCausal(tree.lengths, tree.prefixes).attend(0, q, k, v, Attend(0.2, window=window))
        out.backward(upstream.to(device, kind))
        results.append([t.float().cpu() for t in (out.detach(), q.grad, k.grad, v.grad)])
    bound = 1e-4 if dtype == torch.float32 else 5e-2
    for a, b in zip(*results, strict=True):
        assert float((a - b).abs().max()) <= bound * max(1.0, float(a.abs().max()))


def test_samples_have_the_logprobs_of_forward(qwen_dir: Path, tmp_path: Path) -> None:
    cuda, _ = drivers(qwen_dir, dtype="float32")
    revision = export(cuda, "a", tmp_path / "revision")
    request = Sample(revision, np.arange(5, 25, dtype=np.int32), 4, SamplingParams(max_tokens=12, seed=3))
    sampled = cuda.one(request)
    assert isinstance(sampled, Sampled)
    for sequence in sampled.sequences:
        datum = next_token_datum(np.concatenate([request.prompt, sequence.tokens]))
        passed = cuda.one(ForwardBackward("a", (datum,), "cross_entropy", forward_only=True))
        assert isinstance(passed, Passed)
        np.testing.assert_allclose(sequence.logprobs, passed.logprobs[0][len(request.prompt) - 1 :], rtol=0, atol=1e-4)


def test_parked_runs_come_back(qwen_dir: Path) -> None:
    driver = make_driver(qwen_dir, device="cuda", max_resident_runs=1)
    for run in ("a", "b"):
        trained_run(driver, run, shape(4))
    assert torch.equal(trainable(driver, "a").adapter.flat, trainable(driver, "b").adapter.flat)
    assert trainable(driver, "a").adapter.flat.is_cuda
