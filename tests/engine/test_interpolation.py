"""Sums of adapters against PEFT's own concatenation, and against dense weights in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mint.engine.adapters import CONFIG_FILE, WEIGHTS_FILE
from mint.engine.core import ExportRevision, Interpolate, LoadState, LoraShape, RestoreRun, Saved, WeightedRevision
from mint.errors import BadRequestError
from tests.engine.conftest import EngineDriver, make_driver
from tests.engine.support import trained_run

COEFFICIENTS = 0.7, -0.25, 1.5
SHAPES = (
    LoraShape(rank=8, seed=1),
    LoraShape(rank=3, seed=2, train_unembed=False),
    LoraShape(rank=5, seed=3, train_attn=False, alpha=10.0),
)


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """ΔW of every adapted layer, float64 (O, I), as PEFT's documentation has it."""
    config, tensors = json.loads((folder / CONFIG_FILE).read_text()), load_file(folder / WEIGHTS_FILE)
    scale = config["lora_alpha"] / config["r"]
    names = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    return {
        name: scale * tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
        for name in names
    }


def exported(driver: EngineDriver, tmp_path: Path) -> list[Path]:
    folders = []
    for number, shape in enumerate(SHAPES):
        trained_run(driver, f"run{number}", shape, seed=number)
        folders.append(tmp_path / f"run{number}")
        driver.one(ExportRevision(f"run{number}", folders[-1], key=f"{tmp_path}-{number}"))
    return folders


def summed(driver: EngineDriver, folders: list[Path], target: Path) -> Path:
    sources = map(WeightedRevision, folders, COEFFICIENTS)
    saved = driver.one(Interpolate(tuple(sources), target))
    assert isinstance(saved, Saved)
    assert saved.size_bytes == sum(file.stat().st_size for file in target.iterdir())
    return target


def assert_is_sum(target: Path, folders: list[Path]) -> None:
    parts = [deltas(folder) for folder in folders]
    result = deltas(target)
    assert result.keys() == set().union(*parts)
    for name, ours in result.items():
        terms = [c * part[name] for c, part in zip(COEFFICIENTS, parts, strict=True) if name in part]
        # each element of B is rounded once; the products that are summed bound what that can make
        bound = 2**-23 * float(torch.stack([term.abs() for term in terms]).sum(dim=0).max() + 1e-3)
        assert float((ours - sum(terms)).abs().max()) <= bound, name


def test_dense_weights_of_the_sum_are_the_weighted_sum(driver: EngineDriver, tmp_path: Path) -> None:
    folders = exported(driver, tmp_path)
    target = summed(driver, folders, tmp_path / "sum")
    assert json.loads((target / CONFIG_FILE).read_text())["r"] == 16
    assert_is_sum(target, folders)
    driver.one(RestoreRun("again", target, with_optimizer=False))
    assert driver.engine._trainer.run("again").adapter.layout.shape == LoraShape(rank=16, seed=None)


def test_peft_concatenates_to_the_same(driver: EngineDriver, qwen_dir: Path, tmp_path: Path) -> None:
    """PEFT wants the same layers in all, and puts the square root of a coefficient into each factor: no minus."""
    folders = [tmp_path / name for name in ("a", "b")]
    for number, folder in enumerate(folders):
        trained_run(driver, folder.name, LoraShape(rank=4 + number, seed=number, alpha=16.0), seed=number)
        driver.one(ExportRevision(folder.name, folder, key=str(folder)))
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    model.add_weighted_adapter(["a", "b"], [0.3, 1.7], "theirs", combination_type="cat")
    sources = tuple(map(WeightedRevision, folders, (0.3, 1.7)))
    driver.one(Interpolate(sources, tmp_path / "sum"))
    model.load_adapter(tmp_path / "sum", adapter_name="ours")
    tokens = torch.arange(1, 40)[None]
    logits = {}
    with torch.no_grad():
        for name in ("a", "theirs", "ours"):
            model.set_adapter(name)
            logits[name] = model(input_ids=tokens).logits.log_softmax(dim=-1)
    assert float((logits["theirs"] - logits["ours"]).abs().max()) < 1e-4
    assert float((logits["a"] - logits["ours"]).abs().max()) > 1e-2


def test_experts_are_summed_one_by_one(moe_dir: Path, tmp_path: Path) -> None:
    driver = make_driver(moe_dir)
    folders = exported(driver, tmp_path)
    assert_is_sum(summed(driver, folders, tmp_path / "sum"), folders)


def test_training_goes_on_beside_it(driver: EngineDriver, tmp_path: Path) -> None:
    """It is of no run, and touches none."""
    folders = exported(driver, tmp_path)
    before = driver.engine._trainer.run("run0").adapter.flat.clone()
    summed(driver, folders, tmp_path / "sum")
    assert torch.equal(driver.engine._trainer.run("run0").adapter.flat, before)


def test_what_cannot_be_summed_is_refused(driver: EngineDriver, tmp_path: Path) -> None:
    folders = exported(driver, tmp_path)
    good = WeightedRevision(folders[0], 1.0)
    with pytest.raises(BadRequestError, match="cannot be read"):
        driver.one(Interpolate((good, WeightedRevision(tmp_path / "nowhere", 1.0)), tmp_path / "sum"))
    with pytest.raises(BadRequestError, match=r"^coefficients: .* not finite"):
        driver.one(Interpolate((replace(good, coefficient=1e42),), tmp_path / "sum"))
    tensors = load_file(folders[1] / WEIGHTS_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1." not in name}, folders[1] / WEIGHTS_FILE)
    with pytest.raises(BadRequestError, match="does not fit this base model"):
        driver.one(Interpolate((good, WeightedRevision(folders[1], 1.0)), tmp_path / "sum"))
    driver.one(LoadState("run0", folders[0], with_optimizer=False))
