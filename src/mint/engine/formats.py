"""The files of a checkpoint folder, as the engine writes them and an upload must have them. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mint.engine.core import LoraShape

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
"""Beside the weights in a training checkpoint: AdamW's moments, flat, with the number of its steps."""

MOMENTS = ("exp_avg", "exp_avg_sq")

LAYOUT_VERSION = 2
"""Of the order of an adapter's factors in its flat buffer, which is that of the moments in the file."""


def factor_name(layer: str, factor: str) -> str:
    """The tensor of factor "A" or "B" of a linear layer, by PEFT's name."""
    return f"base_model.model.{layer}.lora_{factor}.weight"


def peft_config(shape: LoraShape, layers: Iterable[str], base_model: str) -> dict[str, Any]:
    """`adapter_config.json` of a LoRA on these linear layers."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
    }
