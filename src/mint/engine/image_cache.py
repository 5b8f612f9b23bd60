"""What the vision tower has made of images, kept: it is frozen, so an image is the same in every run and request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mint.engine.core import Image, Int64Array
from mint.errors import BadRequestError
from mint.models.vision import ImageEncoder, Insert

ENCODED_TOGETHER = 16
"""Images in one pass through the tower: more take memory and save nothing."""


class ImageCache:
    """Embeddings of images by their keys; the least recently used go when they are more than `max_bytes`.

    Args:
        encoder: None for a model that sees nothing.
    """

    def __init__(self, encoder: ImageEncoder | None, max_bytes: int) -> None:
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0

    def inserts(self, places: Sequence[tuple[Int64Array, Image, int]], device: torch.device) -> list[Insert]:
        """For each place, int64 (n,) rows of a batch, an image, and which of its tokens the first row is."""
        embeddings = self._embeddings({image.key: image for _, image, _ in places})
        return [
            Insert(torch.from_numpy(rows).to(device), embeddings[image.key][first : first + len(rows)])
            for rows, image, first in places
        ]

    def _embeddings(self, images: dict[bytes, Image]) -> dict[bytes, Tensor]:
        """Of all these, (num_tokens, E) each; those that are not known are encoded."""
        found = {key: self._known[key] for key in images if key in self._known}
        for key in found:
            self._known.move_to_end(key)
        missing = [key for key in images if key not in found]
        for start in range(0, len(missing), ENCODED_TOGETHER):
            if self._encoder is None:
                raise BadRequestError("this model takes no images")
            part = missing[start : start + ENCODED_TOGETHER]
            pixels = torch.from_numpy(np.stack([images[key].pixels for key in part]))
            # a copy of each, so that one that goes frees its memory
            encoded = {key: each.clone() for key, each in zip(part, self._encoder.encode(pixels), strict=True)}
            found |= encoded
            self._keep(encoded)
        return found

    def _keep(self, encoded: dict[bytes, Tensor]) -> None:
        self._known |= encoded
        self._bytes += sum(each.nbytes for each in encoded.values())
        while self._bytes > self._max_bytes:
            _, oldest = self._known.popitem(last=False)
            self._bytes -= oldest.nbytes
