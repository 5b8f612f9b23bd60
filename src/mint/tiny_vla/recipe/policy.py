"""The model as a policy: observations and targets as tensors, what it says, and how that fares in the arena.

Sequences of a batch are B, of S positions: images, prefix, target. Must not know how the weights came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mint.openpi import CAMERA_LAYOUT
from mint.openpi.images import pixel_values
from mint.openpi.prompts import PolicyTokens
from mint.openpi.statistics import Statistics
from mint.tiny_vla.reaching import ACTION_DIM, CHUNKS, HORIZON, Images, Points, Reaching, instruction

MAX_TARGET = 14
"""Tokens after which a policy that has not come to an end is stopped; a target has 8 or 9."""


@dataclass(frozen=True, eq=False)
class Policy:
    """A PaliGemma with its tokens and statistics; `model` may be wrapped in LoRA."""

    model: Any
    tokens: PolicyTokens
    statistics: Mapping[str, Statistics]

    def prefixes(self, positions: Points, mirrored: bool) -> list[list[int]]:
        """What the policy is told of each scene."""
        states = self.statistics["state"].normalize(positions)
        return [self.tokens.prefix(instruction(mirrored), state) for state in states]

    def targets(self, chunks: Points) -> list[list[int]]:
        """The tokens that say these chunks (N, H, D)."""
        return [self.tokens.target(chunk).tokens for chunk in self.statistics["actions"].normalize(chunks)]

    def loss(self, images: Mapping[str, Images], prefixes: list[list[int]], targets: list[list[int]]) -> Tensor:
        """Mean over the batch of each datum's mean −log-probability of its target."""
        features = self.features(images)
        logprobs = self.logits(features, prefixes, targets).log_softmax(-1)
        losses = []
        for row, prefix, target in zip(logprobs, prefixes, targets, strict=True):
            first = features.shape[1] + len(prefix) - 1
            losses.append(-row[torch.arange(first, first + len(target)), target].mean())
        return torch.stack(losses).mean()

    def features(self, images: Mapping[str, Images]) -> Tensor:
        """Image tokens (B, I, hidden) of all cameras."""
        size = self.model.config.vision_config.image_size
        flat = np.stack([pixel_values(image, size) for camera in CAMERA_LAYOUT for image in images[camera]])
        features: Tensor = self.model.get_image_features(pixel_values=torch.from_numpy(flat)).pooler_output
        cameras = features.reshape(len(CAMERA_LAYOUT), -1, *features.shape[1:])
        return cameras.transpose(0, 1).flatten(1, 2)

    def logits(self, features: Tensor, prefixes: list[list[int]], targets: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, S, vocabulary), padded at the end."""
        ids = [[*prefix, *target] for prefix, target in zip(prefixes, targets, strict=True)]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        causal = torch.ones(len(ids), features.shape[1] + longest, dtype=torch.int64)
        for row, prefix in zip(causal, prefixes, strict=True):
            row[: features.shape[1] + len(prefix)] = 0
        embedded = torch.cat([features, self.model.get_input_embeddings()(padded)], dim=1)
        logits: Tensor = self.model(inputs_embeds=embedded, attention_mask=mask_of(causal), use_cache=False).logits
        return logits

    @torch.inference_mode()
    def say(self, images: Mapping[str, Images], prefixes: list[list[int]]) -> list[list[int]]:
        """The likeliest tokens of each scene, greedily."""
        features = self.features(images)
        said: list[list[int]] = [[] for _ in prefixes]
        for _ in range(MAX_TARGET):
            logits = self.logits(features, prefixes, said)
            for row, prefix, tokens in zip(logits, prefixes, said, strict=True):
                tokens.append(int(row[features.shape[1] + len(prefix) + len(tokens) - 1].argmax()))
            if all(self.tokens.eos_id in tokens for tokens in said):
                break
        return said

    def act(self, images: Mapping[str, Images], positions: Points, mirrored: bool) -> npt.NDArray[np.float32]:
        """The chunks (N, H, D) that the policy would carry out."""
        said = self.say(images, self.prefixes(positions, mirrored))
        chunks = np.stack([self.tokens.actions(tokens, HORIZON, ACTION_DIM).actions for tokens in said])
        return self.statistics["actions"].unnormalize(chunks)


def mask_of(causal: Tensor) -> Tensor:
    """Float (B, 1, S, S) to add to attention's scores: i sees j iff cumsum[j] ≤ cumsum[i], of `causal` int64 (B, S)."""
    steps = causal.cumsum(1)
    seen = steps[:, None, None, :] <= steps[:, None, :, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def success(policy: Policy, seed: int, mirrored: bool, episodes: int = 100, blind: bool = False) -> float:
    """The share of episodes that reach their square; `blind` shows the policy black images."""
    arena = Reaching.start(seed, episodes, mirrored)
    for _ in range(CHUNKS):
        images = arena.images()
        if blind:
            images = {camera: np.zeros_like(image) for camera, image in images.items()}
        arena.step(policy.act(images, arena.positions, mirrored))
    return float(arena.reached.mean())
