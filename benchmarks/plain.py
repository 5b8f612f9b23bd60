"""The same arithmetic as the engine's with plain transformers and PEFT: padded batches, autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from mint.engine.core import Datum, Int32Array, LoraShape

PROJECTIONS = tuple(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down"))
IGNORED = -100
"""The target that torch's cross-entropy leaves out."""


class Plain:
    """A model with one LoRA on all seven projections and the unembedding. A pass adds to the factors' gradients."""

    def __init__(self, folder: Path, rank: int) -> None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        alpha = int(LoraShape(rank, seed=None).alpha)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=[*PROJECTIONS, "lm_head"])
        self._model: Any = get_peft_model(base, config)

    def cross_entropy(self, data: Sequence[Datum]) -> Callable[[], float]:
        """A pass over some datums, which are padded now; it returns the loss, summed over the real tokens."""
        tokens, mask = _padded([d.tokens for d in data], 0), _padded([np.ones(len(d.tokens)) for d in data], 0)
        targets = _padded([d.loss_inputs["target_tokens"] for d in data], IGNORED)

        def forward_backward() -> float:
            logits = self._logits(tokens, mask)
            return _backward(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))

        return forward_backward

    def importance_sampling(self, data: Sequence[Datum], last: int | None = None) -> Callable[[], float]:
        """As above, −Σ exp(p − q) A over datums of one length; only the last tokens are unembedded, if told so."""
        size = len(data[0].tokens)
        kept = slice(size - (last or size), size)
        tokens = torch.from_numpy(np.stack([d.tokens for d in data])).long()
        targets, q, advantages = (
            torch.from_numpy(np.stack([d.loss_inputs[name] for d in data]))[:, kept]
            for name in ("target_tokens", "logprobs", "advantages")
        )

        def forward_backward() -> float:
            logits = self._logits(tokens, torch.ones_like(tokens), logits_to_keep=last or 0)
            p = -cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(q)
            return _backward(-(torch.exp(p - q) * advantages).sum())

        return forward_backward

    def generate(self, prompts: Sequence[Int32Array], max_tokens: int, num_samples: int = 1) -> int:
        """Draw that many tokens after each prompt, all in one padded batch; how many tokens that is."""
        tokens = _padded([prompt[::-1].copy() for prompt in prompts], 0).flip(1)
        mask = _padded([np.ones(len(prompt)) for prompt in prompts], 0).flip(1)
        self._model.generation_config.eos_token_id = None  # nothing ends a sample before its length
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=max_tokens,
                num_return_sequences=num_samples,
                pad_token_id=0,
            )
        rows, length = out.shape
        if length - tokens.shape[1] != max_tokens:
            raise RuntimeError(f"{length - tokens.shape[1]} tokens were drawn in place of {max_tokens}")
        return int(rows * max_tokens)

    def _logits(self, tokens: Tensor, mask: Tensor, **options: int) -> Tensor:
        logits: Tensor = self._model(input_ids=tokens, attention_mask=mask, use_cache=False, **options).logits
        return logits


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _padded(rows: Sequence[Any], filler: int) -> Tensor:
    """Int64 (rows, longest), filled up on the right."""
    tensors = [torch.from_numpy(row).long() for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)
