"""LoRA forward, loss and gradients against PEFT and autograd, on the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from mint.engine.core import AdamParams, CreateRun, Datum, ExportRevision, ForwardBackward, OptimStep, Passed
from tests.engine.conftest import EngineDriver, make_datum, shape

CONFIG = {"ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}}


def train_a_little(driver: EngineDriver, run: str, rng: np.random.Generator, **flags: bool) -> None:
    """B starts at zero: a few large steps make both factors matter."""
    driver.one(CreateRun(run, shape(**flags)))
    for _ in range(3):
        driver.one(ForwardBackward(run, (make_datum(rng, 20),), "cross_entropy"))
        driver.one(OptimStep(run, AdamParams(learning_rate=3e-2)))


def as_peft(driver: EngineDriver, run: str, qwen_dir: Path, folder: Path) -> peft.PeftModel:
    folder.mkdir()
    driver.one(ExportRevision(run, folder, key=str(folder)))
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, folder, is_trainable=True)


def reference_logprobs(model: torch.nn.Module, datum: Datum) -> torch.Tensor:
    logits = model(input_ids=torch.from_numpy(datum.tokens.astype(np.int64))[None]).logits[0]
    targets = torch.from_numpy(datum.loss_inputs["target_tokens"])
    return torch.log_softmax(logits, dim=1).gather(1, targets[:, None])[:, 0]


def reference_loss(loss_fn: str, p: torch.Tensor, datum: Datum) -> torch.Tensor:
    """Written out again, from the formulas in the documentation."""
    x = {name: torch.from_numpy(value) for name, value in datum.loss_inputs.items()}
    if loss_fn == "cross_entropy":
        return -(x["weights"] * p).sum()
    ratio = (p - x["logprobs"]).exp()
    if loss_fn == "importance_sampling":
        return -(x["weights"] * ratio * x["advantages"]).sum()
    clipped = torch.clip(ratio, 0.8, 1.2)
    return -(x["weights"] * torch.minimum(ratio * x["advantages"], clipped * x["advantages"])).sum()


def peft_gradients(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    return {
        name.replace(".default", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def our_gradients(driver: EngineDriver, run: str) -> dict[str, torch.Tensor]:
    trainable = driver.engine._trainer.run(run)
    gradients = {}
    for block in trainable.adapter.layout.blocks:
        a, b = block.factors(trainable.gradients)
        gradients[f"base_model.model.{block.site.name}.lora_A.weight"] = a
        gradients[f"base_model.model.{block.site.name}.lora_B.weight"] = b
    return gradients


@pytest.mark.parametrize("loss_fn", ["cross_entropy", "importance_sampling", "ppo"])
@pytest.mark.parametrize(
    "flags",
    [{}, {"train_unembed": False}, {"train_mlp": False, "train_unembed": False}, {"train_attn": False}],
    ids=["all", "no unembed", "attention only", "no attention"],
)
def test_loss_logprobs_and_gradients_equal_peft(
    driver: EngineDriver, qwen_dir: Path, tmp_path: Path, loss_fn: str, flags: dict[str, bool]
) -> None:
    rng = np.random.default_rng(1)
    train_a_little(driver, "run", rng, **flags)
    model = as_peft(driver, "run", qwen_dir, tmp_path / "peft")
    data = [make_datum(rng, n, policy=True) for n in (5, 17, 17, 1, 40)]
    if loss_fn != "cross_entropy":
        # near the current policy, so that ratios fall on both sides of the clip
        for datum in data:
            with torch.no_grad():
                p = reference_logprobs(model, datum).numpy()
            datum.loss_inputs["logprobs"] = (p + rng.normal(0, 0.3, p.shape)).astype(np.float32)

    result = driver.one(ForwardBackward("run", tuple(data), loss_fn, CONFIG.get(loss_fn, {})))

    assert isinstance(result, Passed)
    expected = [reference_logprobs(model, datum) for datum in data]
    for ours, theirs in zip(result.logprobs, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)
    loss = torch.stack([reference_loss(loss_fn, p, d) for p, d in zip(expected, data, strict=True)]).sum()
    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), abs=1e-4, rel=1e-5)
    loss.backward()
    theirs_grads, ours_grads = peft_gradients(model), our_gradients(driver, "run")
    assert theirs_grads.keys() == ours_grads.keys()
    for name, gradient in theirs_grads.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((gradient - ours_grads[name]).abs().max()) <= 1e-5 * scale, name


def test_a_fresh_adapter_computes_what_the_base_does(driver: EngineDriver, qwen_dir: Path) -> None:
    datum = make_datum(np.random.default_rng(2), 30)
    driver.one(CreateRun("run", shape()))
    result = driver.one(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True))
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    with torch.no_grad():
        expected = reference_logprobs(base, datum).numpy()
    np.testing.assert_allclose(result.logprobs[0], expected, atol=1e-5)


def test_initial_a_has_the_distribution_of_pefts_default(driver: EngineDriver, qwen_dir: Path) -> None:
    """PEFT draws A from Kaiming uniform with a = √5, that is U(−1/√I, 1/√I)."""
    driver.one(CreateRun("run", shape(rank=64)))
    layout = driver.engine._trainer.run("run").adapter.layout
    for block in layout.blocks:
        a, b = block.factors(driver.engine._trainer.run("run").adapter.flat)
        bound = block.site.in_features**-0.5
        assert float(a.abs().max()) <= bound
        assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not b.any()
