"""Pre-training on the CPU: the architecture, the loop, and how an artefact is written."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from mint.openpi.prompts import FAST_FOLDER, PolicyTokens
from mint.openpi.statistics import save_statistics
from mint.tiny.recipe.train import progress_bar
from mint.tiny_vla.reaching import IMAGE_SIZE, expert, render, visited
from mint.tiny_vla.recipe.policy import Policy

PATCH = 8
WIDE = 128
"""Pixels of an image in the geometry with 256 tokens per image."""


@dataclass(frozen=True)
class Plan:
    """All that decides the result: the same plan gives the same training, step by step."""

    steps: int = 800
    seed: int = 5
    batch: int = 48
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """Return the learning rate: a linear warm-up, then a cosine down to a hundredth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def new_model(tokens: PolicyTokens, seed: int) -> PaliGemmaForConditionalGeneration:
    """Return the architecture with random weights."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = GemmaConfig(
        vocab_size=tokens.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=64,
        hidden_size=64,
        vocab_size=tokens.vocab_size,
        image_token_index=tokens.vocab_size,
    )
    return PaliGemmaForConditionalGeneration(config)


def train(policy: Policy, plan: Plan, mirrored: bool = False, told: Callable[[str], None] = print) -> float:
    """Clone the expert's behaviour with all parameters that want a gradient; return the seconds it took."""
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=plan.weight_decay)
    started, mean = time.monotonic(), math.nan
    policy.model.train()
    with progress_bar() as progress:
        bar = progress.add_task("training", total=plan.steps, loss=math.nan)
        for step in range(plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(step)
            loss = _loss_at(policy, plan, step, mirrored)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # A running mean: single batches scatter too much to be read.
            mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
            progress.update(bar, advance=1, loss=mean)
            if (step + 1) % 100 == 0:
                told(f"step {step + 1}: loss {mean:.3f} after {time.monotonic() - started:.0f} s")
    policy.model.eval()
    return time.monotonic() - started


def _loss_at(policy: Policy, plan: Plan, step: int, mirrored: bool) -> torch.Tensor:
    """Each step draws from its own seed and so depends on no other."""
    positions, targets = visited(np.random.default_rng((plan.seed, step)), plan.batch)
    wanted = policy.targets(expert(positions, targets, mirrored))
    return policy.loss(render(positions, targets), policy.prefixes(positions, mirrored), wanted)


def widened(model: PaliGemmaForConditionalGeneration) -> PaliGemmaForConditionalGeneration:
    """The same weights for images of 128 pixels: the embeddings of 4 × 4 places are spread over 16 × 16."""
    config: Any = copy.deepcopy(model.config)
    config.vision_config.image_size = WIDE
    wide = PaliGemmaForConditionalGeneration(config)
    weights = model.state_dict()
    (name,) = [name for name in weights if name.endswith("position_embedding.weight")]
    few, many = IMAGE_SIZE // PATCH, WIDE // PATCH
    places = weights[name].T.unflatten(1, (few, few))[None]
    spread = functional.interpolate(places, (many, many), mode="bilinear", align_corners=False)
    wide.load_state_dict({**weights, name: spread[0].flatten(1).T})
    return wide


def save(policy: Policy, folder: Path) -> None:
    """Write a model, in bfloat16, with all that its clients need."""
    folder.mkdir(parents=True, exist_ok=True)
    narrow = copy.deepcopy(policy.model)
    narrow.to(dtype=torch.bfloat16)
    narrow.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=policy.tokens.tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    policy.tokens.codec.save(folder / FAST_FOLDER)
    save_statistics(policy.statistics, folder / "norm_stats.json")
    for file in folder.rglob("*.*"):
        file.chmod(0o644)
