"""A base model with an adapter merged into its weights, as a folder that transformers loads without us.

W + ΔW is computed in float32 and rounded once, to the type that the base model is stored in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mint.engine.adapters import SCALE_VARIANTS
from mint.engine.formats import CONFIG_FILE, WEIGHTS_FILE
from mint.errors import BadRequestError, ModelLoadError
from mint.models.experts import expert_weights, is_experts
from mint.models.loading import load_tokenizer

PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as PEFT stores it: ΔW = scale · B A, of the layers that `factors` names, A (r, I) and B (O, r)."""

    scale: float
    factors: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def read(cls, directory: Path) -> PeftAdapter:
        """Read a folder.

        Raises:
            BadRequestError: it holds no LoRA, or one of a kind that is not served.
        """
        try:
            config = json.loads((directory / CONFIG_FILE).read_text())
            tensors = load_file(directory / WEIGHTS_FILE)
            scale = config["lora_alpha"] / config["r"]
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, SafetensorError) as error:
            raise BadRequestError(f"{directory} is no folder of a LoRA: {error!r}") from error
        if unserved := [name for name in SCALE_VARIANTS if config.get(name)]:
            raise BadRequestError(f"{directory / CONFIG_FILE} sets {unserved[0]}, which is not served")
        names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
        try:
            factors = {
                name.removeprefix(PREFIX): (tensors.pop(f"{name}.lora_A.weight"), tensors.pop(f"{name}.lora_B.weight"))
                for name in names
            }
        except KeyError as error:
            raise BadRequestError(f"{directory / WEIGHTS_FILE} lacks {error}") from error
        if tensors:
            raise BadRequestError(f"{directory / WEIGHTS_FILE} has {next(iter(tensors))}, which is no factor of a LoRA")
        return cls(scale, factors)


def load_base(location: str) -> PreTrainedModel:
    """A base model in the type that it is stored in.

    Raises:
        ModelLoadError: it does not load, or sees images: its processor would have to go with it.
    """
    try:
        if getattr(AutoConfig.from_pretrained(location), "vision_config", None) is not None:
            raise ModelLoadError(f"{location} sees images; models for text alone are merged")
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(location, dtype="auto")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(f"{location} does not load: {error}") from error
    return model


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: PeftAdapter) -> Iterator[str]:
    """Add ΔW to the weights, one layer with each step; yields its name. An unembedding that was tied is so no more.

    Raises:
        BadRequestError: the adapter is of another base model; what came before has been added.
    """
    weights = dict(_weights(model))
    for name, (a, b) in adapter.factors.items():
        weight = weights.get(name)
        if weight is None:
            raise BadRequestError(f"the adapter changes {name}, which the base model has not")
        if (len(b), a.shape[1]) != weight.shape or b.shape[1] != len(a):
            raise BadRequestError(
                f"{name} is {tuple(weight.shape)} in the base model, and {tuple(b.shape)} × {tuple(a.shape)} in the "
                "adapter"
            )
        if weight.data_ptr() == _embedding(model).data_ptr():
            weight = _untie(model)
        weight.copy_(torch.addmm(weight.float(), b.float(), a.float(), alpha=adapter.scale))
        yield name


def save(model: PreTrainedModel, location: str, directory: Path, max_shard_size: str) -> None:
    """Write model, tokenizer and chat template to a folder, weights in safetensors of at most that size."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    load_tokenizer(location).save_pretrained(directory)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights (O, I) that adapters may change, by the names that PEFT has for them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module.weight
        elif is_experts(module):
            yield from expert_weights(name, module)


def _embedding(model: PreTrainedModel) -> Tensor:
    embedding: Any = model.get_input_embeddings()
    weight: Tensor = embedding.weight
    return weight


def _untie(model: PreTrainedModel) -> Tensor:
    """Give the unembedding a weight of its own."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.config.get_text_config(decoder=True).tie_word_embeddings = False
    return head.weight  # type: ignore[no-any-return]
