"""A training step of a robot policy with plain transformers and PEFT: autograd, torch's AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import PaliGemmaForConditionalGeneration

from benchmarks.plain import PROJECTIONS
from mint.engine.core import Datum, LoraShape


class PlainPolicy:
    """A PaliGemma with one LoRA on the language model's seven projections and the unembedding."""

    def __init__(self, folder: Path, rank: int) -> None:
        base = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._image_id = base.config.image_token_id
        alpha = int(LoraShape(rank, seed=None).alpha)
        layers = rf".*language_model.*\.({'|'.join(PROJECTIONS)})|lm_head"
        self._model: Any = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers))
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=0.0)

    def train_step(self, data: Sequence[Datum]) -> Callable[[], float]:
        """A step on datums as the engine takes them, of one length and with all weights alike; returns the mean loss.

        Only what the loss needs is unembedded.
        """
        tokens = torch.from_numpy(np.stack([datum.tokens for datum in data])).long()
        targets = torch.from_numpy(np.stack([datum.loss_inputs["target_tokens"] for datum in data]))
        for placed in data[0].images:
            tokens[:, placed.start : placed.start + placed.num_tokens] = self._image_id
        # block 0 is what sees itself whole, and of type 0
        types = torch.from_numpy(np.stack([datum.blocks for datum in data if datum.blocks is not None])).clamp(max=1)
        images = np.stack([placed.image.pixels for datum in data for placed in datum.images])
        kept = targets.shape[1]

        def step() -> float:
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
            logits = self._model(
                input_ids=tokens,
                pixel_values=pixels,
                token_type_ids=types.long(),
                attention_mask=torch.ones_like(tokens),
                use_cache=False,
                logits_to_keep=kept,
            ).logits
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            return float(loss.detach())

        return step
