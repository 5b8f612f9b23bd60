"""Models of text and images: a vision tower, a projector, and a decoder-only language model behind them.

Here is what their families have in common, and LLaVA (Liu et al., 2023, arXiv 2304.08485), which chats about images.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils.hub import cached_file

from mint.errors import ModelLoadError
from mint.models.attention import ATTENTION_NAME
from mint.models.vision import Channels

ATTENTION = {"text_config": ATTENTION_NAME, "vision_config": "sdpa"}
"""Packed in the language model; the vision tower sees one image at a time, all of it."""


def is_llava(config: dict[str, Any]) -> bool:
    """Whether a config.json is of this family."""
    return config.get("model_type") == "llava"


def read_llava(location: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights and our attention; see `read_checked`."""
    return read_checked(LlavaForConditionalGeneration, {"pretrained_model_name_or_path": location}, location, dtype)


def read_checked(
    family: Any, source: dict[str, Any], location: str, dtype: torch.dtype, attention: str | dict[str, str] = ATTENTION
) -> PreTrainedModel:
    """A model of the family, as `source` says where it is.

    Raises:
        ModelLoadError: it has no weights for a part, or none that fit.
        OSError, ValueError, RuntimeError, SafetensorError: as transformers and safetensors raise them.
    """
    model, report = family.from_pretrained(
        **source, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    for problem, what in (("missing_keys", "no weights for"), ("mismatched_keys", "weights of another shape for")):
        if report[problem]:
            # transformers fills these with random numbers
            raise ModelLoadError(f"{location} has {what} {sorted(map(str, report[problem]))[0]}")
    return model  # type: ignore[no-any-return]


def channels_of(location: str) -> tuple[Channels, Channels]:
    """Mean and deviation that images are normalised by: those beside the model, or else CLIP's."""
    name = "preprocessor_config.json"
    found = cached_file(location, name, _raise_exceptions_for_missing_entries=False)
    config = PretrainedConfig._dict_from_json_file(found) if found is not None else {}
    return config.get("image_mean", OPENAI_CLIP_MEAN), config.get("image_std", OPENAI_CLIP_STD)
