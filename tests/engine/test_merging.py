"""Merged models, loaded by transformers alone, against what the engine computes with the adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mint.engine.adapters import CONFIG_FILE, WEIGHTS_FILE
from mint.engine.core import ExportRevision, ForwardBackward, LoraShape, Passed
from mint.engine.merging import PeftAdapter, load_base, merge, save
from mint.errors import BadRequestError
from tests.engine.conftest import EngineDriver, make_datum, make_driver
from tests.engine.support import trained_run


def exported(driver: EngineDriver, folder: Path, shape: LoraShape) -> Path:
    trained_run(driver, "run", shape)
    driver.one(ExportRevision("run", folder, key=str(folder)))
    return folder


def merged(base: Path, adapter: Path, target: Path, shard: str = "5GB") -> Path:
    model, peft = load_base(str(base)), PeftAdapter.read(adapter)
    assert list(merge(model, peft)) == list(peft.factors)
    save(model, str(base), target, shard)
    return target


def assert_same_logprobs(driver: EngineDriver, folder: Path) -> None:
    """Of the run with its adapter, and of the merged folder; the base model's are others."""
    datum = make_datum(np.random.default_rng(5), 40)
    result = driver.one(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True))
    assert isinstance(result, Passed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(datum.tokens.astype(np.int64))[None]).logits[0]
    targets = torch.from_numpy(datum.loss_inputs["target_tokens"])
    theirs = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0].numpy()
    np.testing.assert_allclose(theirs, result.logprobs[0], atol=2e-4)


@pytest.mark.parametrize(
    "shape",
    [LoraShape(rank=4, seed=0), LoraShape(rank=4, seed=0, train_unembed=False), LoraShape(rank=4, seed=0, alpha=5.0)],
    ids=["head", "no head", "another alpha"],
)
@pytest.mark.parametrize("kind", ["tied", "experts"])
def test_a_merged_model_computes_what_the_adapter_does(
    qwen_dir: Path, moe_dir: Path, tmp_path: Path, shape: LoraShape, kind: str
) -> None:
    base = {"tied": qwen_dir, "experts": moe_dir}[kind]
    driver = make_driver(base)
    adapter = exported(driver, tmp_path / "adapter", shape)
    folder = merged(base, adapter, tmp_path / "merged", "200KB")
    assert_same_logprobs(driver, folder)
    with pytest.raises(AssertionError):
        assert_same_logprobs(driver, base)
    assert len(list(folder.glob("*.safetensors"))) > 1
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is (kind == "tied" and not shape.train_unembed)
    assert not list(folder.glob("*.bin"))


def test_the_tokenizer_comes_along(driver: EngineDriver, qwen_dir: Path, tmp_path: Path) -> None:
    folder = merged(qwen_dir, exported(driver, tmp_path / "adapter", LoraShape(4, 0)), tmp_path / "merged")
    before, after = AutoTokenizer.from_pretrained(qwen_dir), AutoTokenizer.from_pretrained(folder)
    assert after("A little test, of 12 words.").input_ids == before("A little test, of 12 words.").input_ids
    assert after.chat_template == before.chat_template is not None
    assert after.get_vocab() == before.get_vocab()


def test_weights_are_rounded_once_to_the_type_of_the_base(qwen_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(qwen_dir).save_pretrained(base)
    adapter = exported(make_driver(qwen_dir), tmp_path / "adapter", LoraShape(4, 0, train_unembed=False))
    folder = merged(base, adapter, tmp_path / "merged")
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    factors = load_file(adapter / WEIGHTS_FILE)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        a = factors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        if a is None:
            assert torch.equal(weight, before[name]), name
            continue
        b = factors[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"]
        expected = before[name].double() + 8 * b.double() @ a.double()
        # half a unit in the last of 8 places, and what float32 rounds on the way
        assert weight.dtype == torch.bfloat16
        assert bool(((weight.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()), name


def test_what_does_not_fit_is_refused(driver: EngineDriver, qwen_dir: Path, moe_dir: Path, tmp_path: Path) -> None:
    adapter = exported(driver, tmp_path / "adapter", LoraShape(4, 0))
    peft = PeftAdapter.read(adapter)
    with pytest.raises(BadRequestError, match="in the base model"):
        list(merge(load_base(str(moe_dir)), peft))
    wrong = {"model.embed_tokens": next(iter(peft.factors.values()))}
    with pytest.raises(BadRequestError, match="embed_tokens, which the base model has not"):
        list(merge(load_base(str(qwen_dir)), replace(peft, factors=wrong)))
    with pytest.raises(BadRequestError, match="no folder of a LoRA"):
        PeftAdapter.read(qwen_dir)
    tensors, config = load_file(adapter / WEIGHTS_FILE), json.loads((adapter / CONFIG_FILE).read_text())
    save_file({**tensors, "extra": torch.zeros(1)}, adapter / WEIGHTS_FILE)
    with pytest.raises(BadRequestError, match="extra, which is no factor"):
        PeftAdapter.read(adapter)
    save_file({key: value for key, value in tensors.items() if "lora_B" not in key}, adapter / WEIGHTS_FILE)
    with pytest.raises(BadRequestError, match="lacks"):
        PeftAdapter.read(adapter)
    (adapter / CONFIG_FILE).write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(BadRequestError, match="use_dora"):
        PeftAdapter.read(adapter)
