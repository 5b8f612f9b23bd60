"""PaliGemma, the vision-language model that pi0-FAST is: transformers' own, from its folders or from lerobot's.

lerobot keeps the weights under names of its own, beside a config.json that describes a policy and not a model of
transformers. Of that kind there is one geometry, PaliGemma 3B at 224 pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PreTrainedModel
from transformers.utils.hub import cached_file

from mint.errors import ModelLoadError
from mint.models.seeing import read_checked

LEROBOT_TYPE = "pi0_fast"
LEROBOT_PREFIXES = ("model.", "paligemma_with_expert.paligemma.")

PALIGEMMA_3B: dict[str, Any] = {
    "projection_dim": 2048,
    "image_token_index": 257152,
    "text_config": {
        "model_type": "gemma",
        "vocab_size": 257152,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 2048,
        "vision_use_head": False,
    },
}


def is_paligemma(config: dict[str, Any]) -> bool:
    """Whether a config.json is of this family, in either of its forms."""
    return config.get("model_type") == "paligemma" or config.get("type") == LEROBOT_TYPE


def read_paligemma(location: str, config: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights and our attention.

    Raises:
        ModelLoadError: weights are missing, or the geometry is none that is served.
        OSError, ValueError, RuntimeError, SafetensorError: as transformers and safetensors raise them.
    """
    source: dict[str, Any] = {"pretrained_model_name_or_path": location}
    if config.get("type") == LEROBOT_TYPE:
        if (variant := config.get("paligemma_variant", "gemma_2b")) != "gemma_2b":
            raise ModelLoadError(f"{location} has the language model {variant}; served is gemma_2b")
        weights = _lerobot_weights(location)
        source = {"pretrained_model_name_or_path": None, "config": PaliGemmaConfig(**PALIGEMMA_3B)}
        source["state_dict"] = weights
    return read_checked(PaliGemmaForConditionalGeneration, source, location, dtype)


def _lerobot_weights(location: str) -> dict[str, Tensor]:
    """All that the file has for the model, under transformers' names."""
    found = cached_file(location, "model.safetensors")
    assert found is not None
    return {transformers_name(name): weight for name, weight in load_file(found).items()}


def transformers_name(name: str) -> str:
    """What transformers calls the weight that lerobot calls so."""
    for prefix in LEROBOT_PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace("vision_tower.vision_model.", "vision_tower.")
