"""What loads, what is refused with a reason, and that a loaded model computes what transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from mint.config import EngineConfig, ModelSource
from mint.engine.core import LoraSite, ModelInfo
from mint.engine.worker import build_engine
from mint.errors import ModelLoadError
from mint.models.attention import PackedCausal
from mint.models.loading import load, load_tokenizer, locate, stop_token_ids
from mint.models.lora import LinearGroup
from mint.models.norms import RmsNorm

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [2.0] * 8,
    "short_factor": [1.0] * 8,
    "original_max_position_embeddings": 32,
    "factor": 2.0,
}


def save(folder: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(folder)
    return str(folder)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- finding ------------------------------------------------------------------------------------------------


def test_a_folder_is_found(qwen_dir: Path) -> None:
    assert locate(str(qwen_dir)) == qwen_dir.resolve()


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no local folder"):
        locate(str(tmp_path / "missing"))
    with pytest.raises(ModelLoadError, match="missing does not load"):
        load(str(tmp_path / "missing"))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"without a config\.json"):
        locate(str(tmp_path))
    with pytest.raises(ModelLoadError, match="does not load"):
        load(str(tmp_path))


def test_the_home_folder_is_understood(qwen_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(qwen_dir.parent))
    _, info = build_engine(ModelSource("mine", f"~/{qwen_dir.name}"), EngineConfig(), print)
    assert info.tokenizer == str(qwen_dir.resolve())


@pytest.mark.parametrize("damage", ["no weights", "truncated weights", "config is no JSON", "no such type"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    save(tmp_path, LlamaForCausalLM(LlamaConfig(**GROUPED)))
    weights = tmp_path / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "config is no JSON":
        (tmp_path / "config.json").write_text("{")
    else:
        edit_config(tmp_path, model_type="no-such-type")
    with pytest.raises(ModelLoadError, match="does not load"):
        load(str(tmp_path))


def test_weights_that_are_missing_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    """transformers would fill the gap with random numbers, and only warn."""
    folder = save(tmp_path, LlamaForCausalLM(LlamaConfig(**GROUPED)))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    wide = {**tensors, "lm_head.weight": torch.zeros(64, 33)}
    del tensors["lm_head.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"no weights for lm_head\.weight"):
        load(folder)
    save_file(wide, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="does not load"):
        load(folder)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, LlamaForCausalLM(LlamaConfig(**GROUPED)))
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load_tokenizer(folder)


# --- refusing -----------------------------------------------------------------------------------------------

REFUSED = {
    "dynamic rope": (LlamaForCausalLM, LlamaConfig(**GROUPED, rope_parameters=DYNAMIC), "dynamic"),
    "longrope": (LlamaForCausalLM, LlamaConfig(**GROUPED, rope_parameters=LONG), "longrope"),
    "scaled logits": (
        CohereForCausalLM,
        CohereConfig(**GROUPED, logit_scale=0.1),
        "log-probabilities would be wrong",
    ),
    "ALiBi": (
        BloomForCausalLM,
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2, initializer_range=0.2),
        "log-probabilities would be wrong",
    ),
    "no linear layers": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2),
        "no linear",
    ),
}


@pytest.mark.parametrize(("kind", "config", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_computed_wrongly_is_refused(
    tmp_path: Path, kind: type[PreTrainedModel], config: Any, reason: str
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path, kind(config))
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load(folder)
    assert folder in str(caught.value) or reason == "no linear"


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_soft_capping_is_refused(tmp_path: Path, field: str) -> None:
    folder = save(tmp_path, GemmaForCausalLM(GemmaConfig(**GROUPED, head_dim=16)))
    load(folder)
    edit_config(tmp_path, **{field: 30.0})
    with pytest.raises(ModelLoadError, match=field):
        load(folder)


# --- serving ------------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
SERVED = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**GROUPED)),
    "Llama with YaRN": (LlamaForCausalLM, LlamaConfig(**GROUPED, rope_parameters=YARN)),
    "Llama, tied, with biases": (
        LlamaForCausalLM,
        LlamaConfig(**GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    ),
    "Gemma": (GemmaForCausalLM, GemmaConfig(**GROUPED, head_dim=16)),
    "Gemma 3, windows on some layers": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **{**GROUPED, "num_hidden_layers": 3}, head_dim=16, sliding_window=7, sliding_window_pattern=2
        ),
    ),
    "Mistral, windows everywhere": (MistralForCausalLM, MistralConfig(**GROUPED, sliding_window=9)),
    "Qwen2, windows on all layers": (
        Qwen2ForCausalLM,
        Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ),
    "Phi-3": (Phi3ForCausalLM, Phi3Config(**GROUPED)),
    "GPT-NeoX": (GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES)),
    "Qwen3-MoE": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**GROUPED, head_dim=16, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2),
    ),
    "Mixtral": (MixtralForCausalLM, MixtralConfig(**GROUPED, num_local_experts=4, sliding_window=None)),
}


@pytest.mark.parametrize(("kind", "config"), SERVED.values(), ids=SERVED)
def test_packed_sequences_equal_transformers(tmp_path: Path, kind: type[PreTrainedModel], config: Any) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path, kind(config))
    served, theirs = load(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sequences = [torch.randint(0, 64, (length,)) for length in (6, 20, 60)]
    lengths = [len(s) for s in sequences]
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        hidden = served.hidden_states(torch.cat(sequences), positions, PackedCausal(lengths), [])
        ours = served.head.logits(hidden, [])
        expected = torch.cat([theirs(input_ids=s[None]).logits[0] for s in sequences])
    assert float((ours.log_softmax(1) - expected.log_softmax(1)).abs().max()) <= 1e-5
    assert served.num_parameters == theirs.num_parameters()
    assert not any(p.requires_grad for p in served._decoder.parameters())


def test_sites_are_named_and_sorted_into_kinds(tmp_path: Path) -> None:
    served = load(save(tmp_path, LlamaForCausalLM(LlamaConfig(**GROUPED))))
    assert [(site.index, site.name, site.kind) for site in served.sites] == [
        (0, "model.layers.0.self_attn.q_proj", "attn"),
        (1, "model.layers.0.self_attn.k_proj", "attn"),
        (2, "model.layers.0.self_attn.v_proj", "attn"),
        (3, "model.layers.0.self_attn.o_proj", "attn"),
        (4, "model.layers.0.mlp.gate_proj", "mlp"),
        (5, "model.layers.0.mlp.up_proj", "mlp"),
        (6, "model.layers.0.mlp.down_proj", "mlp"),
        (7, "lm_head", "unembed"),
    ]
    assert [(served.sites[i].in_features, served.sites[i].out_features) for i in (1, 4, 6, 7)] == [
        (32, 16),
        (32, 48),
        (48, 32),
        (32, 64),
    ]


def test_model_info(qwen_dir: Path) -> None:
    _, info = build_engine(ModelSource("some/name", str(qwen_dir)), EngineConfig(max_lora_rank=7), print)
    embeddings, layer_norms = 2048 * 64, 64 * 2 + 16 * 2
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + layer_norms
    assert info == ModelInfo(
        name="some/name",
        tokenizer=str(qwen_dir.resolve()),
        architecture="Qwen3ForCausalLM",
        vocab_size=2048,
        max_context_length=512,
        max_sample_length=512,
        stop_token_ids=(2,),
        max_lora_rank=7,
        num_parameters=embeddings + 2 * layer + 64,
        lora_sites=info.lora_sites,
    )
    assert [(site.kind, site.in_features, site.out_features) for site in info.lora_sites[:7]] == [
        *(("attn", 64, out) for out in (64, 32, 32)),
        ("attn", 64, 64),
        *(("mlp", 64, 96), ("mlp", 64, 96)),
        ("mlp", 96, 64),
    ]
    assert info.lora_sites[-1] == LoraSite("lm_head", "unembed", 64, 2048)


def test_stop_tokens_are_all_that_the_files_declare(qwen_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(qwen_dir))
    config = AutoConfig.from_pretrained(qwen_dir)
    config.eos_token_id = [7, 9]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert stop_token_ids(str(tmp_path), config, tokenizer) == (2, 5, 7, 9)
    (tmp_path / "generation_config.json").unlink()
    assert stop_token_ids(str(tmp_path), config, tokenizer) == (2, 7, 9)


def test_samples_are_bounded_by_the_cache_where_that_is_smaller(qwen_dir: Path) -> None:
    # 2 layers × keys and values × 2 heads × 16 × float32 = 512 bytes for each token
    _, info = build_engine(ModelSource("some/name", str(qwen_dir)), EngineConfig(kv_cache_bytes=64 * 512), print)
    assert (info.max_context_length, info.max_sample_length) == (512, 64)


@pytest.mark.parametrize(("place", "name"), [(RmsNorm, "forward"), (LinearGroup, "output")])
def test_a_mistake_in_what_stands_in_for_transformers_is_found(
    qwen_dir: Path, monkeypatch: pytest.MonkeyPatch, place: type, name: str
) -> None:
    right = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *arguments: right(*arguments) * 1.1)
    with pytest.raises(ModelLoadError, match="would be wrong by"):
        load(str(qwen_dir))
