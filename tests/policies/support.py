"""A random robot policy, small enough for any test, and what is said to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from mint.engine.core import Datum, ForwardBackward, Image, PlacedImage
from mint.engine.optimizer import TrainableAdapter
from tests.engine.support import MergedModel
from tests.openpi.codecs import fitted, text_tokenizer

VOCAB, SIZE, IMAGE_TOKENS = 512, 28, 4
CONFIG: dict[str, Any] = {
    "projection_dim": 32,
    "image_token_index": VOCAB - 1,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "text_config": {
        "model_type": "gemma",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 14,
        "projection_dim": 32,
        "vision_use_head": False,
    },
}


def random_policy() -> PaliGemmaForConditionalGeneration:
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**CONFIG)).float().eval()
    with torch.no_grad():  # so that images matter
        model.model.multi_modal_projector.linear.weight.mul_(20)
    return model


def save_policy(folder: Path) -> Path:
    random_policy().save_pretrained(folder)
    text_tokenizer().save(str(folder / "tokenizer.json"))
    fitted().save(folder / "fast")
    return folder


def picture(seed: int) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    return Image(pixels, f"picture {seed}".encode())


def placed(images: Sequence[Image]) -> tuple[PlacedImage, ...]:
    return tuple(PlacedImage(place * IMAGE_TOKENS, IMAGE_TOKENS, image) for place, image in enumerate(images))


def prompt(prefix: Sequence[int], images: int = 3) -> np.ndarray:
    return np.array([0] * (images * IMAGE_TOKENS) + list(prefix), np.int32)


def datum(
    rng: np.random.Generator,
    prefix: int = 7,
    targets: int = 5,
    *,
    pictures: Sequence[int] = (1, 2, 3),
    mask: Sequence[int] | None = None,
    policy: bool = False,
) -> Datum:
    """As it comes from the wire: tokens of images and prefix; `check_policy_pass` appends the targets."""
    inputs = {
        "state": rng.normal(size=3).astype(np.float32),
        "target_tokens": rng.integers(0, VOCAB, targets),
        "weights": rng.uniform(0.1, 1, targets).astype(np.float32),
        "token_ar_mask": np.array(mask if mask is not None else [1] * targets, np.int64),
    }
    if policy:
        inputs["logprobs"] = rng.normal(-6, 0.3, targets).astype(np.float32)
        inputs["advantages"] = rng.normal(size=targets).astype(np.float32)
    tokens = prompt(rng.integers(0, VOCAB, prefix).tolist(), len(pictures))
    return Datum(tokens, inputs, placed([picture(seed) for seed in pictures]))


class DensePolicy(MergedModel):
    """transformers' own model with the adapter's products added to its weights, and the mask written out."""

    def __init__(self, folder: Path, adapter: TrainableAdapter | None, dtype: torch.dtype = torch.float64) -> None:
        self.model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
        self.model.requires_grad_(False)
        self.flat = adapter.adapter.flat.to(dtype, copy=True).requires_grad_() if adapter is not None else None
        self._merged: dict[str, Tensor] = {}
        if adapter is not None:
            self._adapter = adapter.adapter

    def logits(self, datum: Datum) -> Tensor:  # type: ignore[override]
        """(N, V) of one sequence as `check_policy_pass` leaves it."""
        if self.flat is not None:
            self._merge()
        ids = torch.from_numpy(datum.tokens.astype(np.int64))[None]
        assert datum.blocks is not None
        c = torch.from_numpy(datum.blocks.astype(np.int64))
        hidden = torch.tensor(torch.finfo(self.model.dtype).min, dtype=self.model.dtype)
        mask = torch.where(c[None, :] <= c[:, None], torch.zeros_like(hidden), hidden)[None, None]
        embedded = self.model.get_input_embeddings()(ids)
        for image in datum.images:
            pixels = torch.from_numpy(image.image.pixels).permute(2, 0, 1)[None].to(self.model.dtype) / 255 * 2 - 1
            features = self.model.get_image_features(pixels).pooler_output[0]
            embedded[0, image.start : image.start + len(features)] = features
        call = {"inputs_embeds": embedded, "attention_mask": mask, "use_cache": False}
        logits: Tensor = torch.func.functional_call(self.model, self._merged, (), call, tie_weights=False).logits[0]
        return logits

    def logprobs(self, datum: Datum) -> Tensor:
        """(T,) of the datum's targets."""
        targets = torch.from_numpy(datum.loss_inputs["target_tokens"])
        rows = self.logits(datum)[-len(targets) :]
        return rows.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]


def one_pass(run: str, data: Sequence[Datum], loss_fn: str = "cross_entropy", **options: bool) -> ForwardBackward:
    return ForwardBackward(run, tuple(data), loss_fn, **options)
