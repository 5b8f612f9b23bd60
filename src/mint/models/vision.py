"""Images as a model sees them: pixels in, embeddings that stand among those of tokens out.

The vision tower and its projector are frozen, so what they make of an image is the same in every run and request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Insert:
    """Embeddings (n, E) that stand in the place of those of the tokens in `rows`, int64 (n,)."""

    rows: Tensor
    embeddings: Tensor


class ImageEncoder:
    """The vision tower and projector of a model.

    Attributes:
        size: of the square images that it takes, in pixels.
        num_tokens: that each image becomes.
        num_encoded: how many images it has encoded.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        vision = model.config.vision_config
        self.size: int = vision.image_size
        self.num_tokens: int = (vision.image_size // vision.patch_size) ** 2
        self.num_encoded = 0
        self._model: Any = model

    def scaled(self, pixels: Tensor) -> Tensor:
        """Uint8 RGB (n, size, size, 3) → (n, 3, size, size), from −1 to 1."""
        return pixels.to(self._model.device).permute(0, 3, 1, 2).to(self._model.dtype) / 127.5 - 1

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Uint8 RGB (n, size, size, 3) → (n, num_tokens, E)."""
        self.num_encoded += len(pixels)
        features: Tensor = self._model.get_image_features(self.scaled(pixels)).pooler_output
        return features
