"""Images as a model sees them: pixels in, embeddings that stand among those of tokens out.

The vision tower and its projector are frozen, so what they make of an image is the same in every run and request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Insert:
    """Embeddings (n, E) that stand in the place of those of the tokens in `rows`, int64 (n,)."""

    rows: Tensor
    embeddings: Tensor


Channels: TypeAlias = Sequence[float]
"""A number for each of red, green and blue."""


class ImageEncoder:
    """The vision tower and projector of a model.

    Args:
        mean, std: of the channels, from 0 to 1, that the tower takes as 0 and 1.

    Attributes:
        size: of the square images that it takes, in pixels.
        num_tokens: that each image becomes.
        num_encoded: how many images it has encoded.
        sees_whole: prompts see themselves whole, as PaliGemma's do; those of other models are causal.
    """

    def __init__(self, model: PreTrainedModel, mean: Channels, std: Channels, *, sees_whole: bool) -> None:
        self.size: int = model.config.vision_config.image_size
        self.sees_whole = sees_whole
        self._model: Any = model
        self._mean, self._std = (torch.tensor(each, device=model.device)[:, None, None] for each in (mean, std))
        self.num_encoded = 0
        self.num_tokens: int = self.encode(torch.zeros(1, self.size, self.size, 3, dtype=torch.uint8)).shape[1]
        self.num_encoded = 0

    def scaled(self, pixels: Tensor) -> Tensor:
        """Uint8 RGB (n, size, size, 3) → (n, 3, size, size), as the tower takes them."""
        channels = pixels.to(self._model.device).permute(0, 3, 1, 2) / 255
        return ((channels - self._mean) / self._std).to(self._model.dtype)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Uint8 RGB (n, size, size, 3) → (n, num_tokens, E)."""
        self.num_encoded += len(pixels)
        features: Tensor | list[Tensor] = self._model.get_image_features(self.scaled(pixels)).pooler_output
        return features if isinstance(features, Tensor) else torch.stack(features)
