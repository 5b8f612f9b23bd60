"""Robot policies as they are found: folders of transformers, lerobot's names, tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from mint.engine.core import PolicyInfo, VisionInfo
from mint.errors import ModelLoadError
from mint.models import paligemma
from mint.models.loading import load
from mint.models.paligemma import PALIGEMMA_3B, transformers_name
from tests.engine.conftest import make_driver
from tests.policies.support import CONFIG, IMAGE_TOKENS, SIZE, VOCAB, random_policy

PREFIX = "model.paligemma_with_expert.paligemma."


def lerobot_name(name: str) -> str:
    """What lerobot's file calls a weight of transformers'."""
    return PREFIX + name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


@pytest.fixture
def lerobot_dir(policy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random policy under the names of `lerobot/pi0fast-base`, whose geometry is that of the random one here."""
    monkeypatch.setattr(paligemma, "PALIGEMMA_3B", CONFIG)
    shutil.copytree(policy_dir, tmp_path / "lerobot")
    weights = random_policy().state_dict()
    save_file(
        {lerobot_name(name): weight for name, weight in weights.items() if name != "lm_head.weight"},
        tmp_path / "lerobot" / "model.safetensors",
    )
    config = {"type": "pi0_fast", "paligemma_variant": "gemma_2b", "chunk_size": 50}
    (tmp_path / "lerobot" / "config.json").write_text(json.dumps(config))
    return tmp_path / "lerobot"


def test_lerobots_names_are_the_same_model(policy_dir: Path, lerobot_dir: Path) -> None:
    ours, theirs = load(str(lerobot_dir)), load(str(policy_dir))
    assert [site.name for site in ours.sites] == [site.name for site in theirs.sites]
    tokens = torch.tensor([5, 6, 7])
    from mint.models.attention import PackedCausal

    for model in (ours, theirs):
        assert model.images is not None
        assert (model.images.size, model.images.num_tokens) == (SIZE, IMAGE_TOKENS)
    same = [m.hidden_states(tokens, torch.arange(3), PackedCausal([3]), []) for m in (ours, theirs)]
    assert torch.equal(*same)
    pixels = torch.arange(SIZE * SIZE * 3).to(torch.uint8).view(1, SIZE, SIZE, 3)
    assert torch.equal(ours.images.encode(pixels), theirs.images.encode(pixels))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "missing", ["model.vision_tower.encoder.layers.0.mlp.fc1.bias", "model.language_model.norm.weight"]
)
def test_a_missing_weight_is_refused(lerobot_dir: Path, missing: str) -> None:
    file = lerobot_dir / "model.safetensors"
    weights = load_file(file)
    del weights[lerobot_name(missing)]
    save_file(weights, file)
    with pytest.raises(ModelLoadError, match=missing):
        load(str(lerobot_dir))


def test_the_documented_names() -> None:
    """Of the file that lerobot publishes; each must be one of transformers' model of 3B."""
    with torch.device("meta"):
        model: Any = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**PALIGEMMA_3B))
    names = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    for theirs, shape in {
        f"{PREFIX}model.language_model.embed_tokens.weight": (257152, 2048),
        f"{PREFIX}model.language_model.layers.17.mlp.gate_proj.weight": (16384, 2048),
        f"{PREFIX}model.language_model.layers.0.self_attn.k_proj.weight": (256, 2048),
        f"{PREFIX}model.multi_modal_projector.linear.weight": (2048, 1152),
        f"{PREFIX}model.vision_tower.vision_model.encoder.layers.26.mlp.fc1.weight": (4304, 1152),
        f"{PREFIX}model.vision_tower.vision_model.embeddings.position_embedding.weight": (256, 1152),
    }.items():
        assert names[transformers_name(theirs)] == shape


def test_another_language_model_is_refused(lerobot_dir: Path) -> None:
    (lerobot_dir / "config.json").write_text(json.dumps({"type": "pi0_fast", "paligemma_variant": "gemma_300m"}))
    with pytest.raises(ModelLoadError, match="gemma_300m"):
        load(str(lerobot_dir))


def test_what_a_worker_says_of_a_policy(policy_dir: Path) -> None:
    info = make_driver(policy_dir).info
    assert info.vision == VisionInfo(SIZE, IMAGE_TOKENS)
    assert info.policy == PolicyInfo(10, 7, policy_dir.resolve(), policy_dir.resolve() / "fast")
    assert (info.vocab_size, info.max_context_length, info.stop_token_ids) == (VOCAB, 256, (1,))
    assert info.architecture == "PaliGemmaForConditionalGeneration"


def test_a_damaged_codec_is_refused(policy_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(policy_dir, tmp_path / "damaged")
    (tmp_path / "damaged" / "fast" / "processor_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"cannot act.*min_token"):
        make_driver(tmp_path / "damaged")
