"""Observations and datums of robot policies, from what a robot has: images, a state, an instruction, actions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from mint.openpi import CAMERA_LAYOUT
from mint.openpi.fast import Actions, DecodedActions
from mint.openpi.images import ImageFormat, Rgb, encode_image
from mint.openpi.prompts import PolicyTokens
from mint.openpi.statistics import Statistics, load_statistics

if TYPE_CHECKING:
    from tinker import types

PI0_TOKENS_PER_IMAGE = 256
MAGIC: dict[bytes, ImageFormat] = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}

Vector: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]
Image: TypeAlias = bytes | Rgb
"""A PNG or JPEG file, or pixels uint8 (height, width, 3), which are sent as PNG."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What a policy acts on: the images and the prefix as `model_input`, and the normalised `state` (S,)."""

    model_input: types.ModelInput
    state: Actions


@dataclass(frozen=True, eq=False)
class OpenPIProcessor:
    """Between a robot's units and a policy's tokens.

    Attributes:
        tokens: of the policy's model.
        statistics: of what "state" and "actions" were in training; those of one robot.
        tokens_per_image: as many as the model makes of an image.
    """

    tokens: PolicyTokens
    statistics: Mapping[str, Statistics]
    tokens_per_image: int = PI0_TOKENS_PER_IMAGE

    @classmethod
    def load(cls, folder: str | Path) -> OpenPIProcessor:
        """That of a model's folder, which has tokenizer, FAST codec and `norm_stats.json` beside its configuration.

        Raises:
            OSError, ValueError: a file is missing or damaged.
        """
        vision = json.loads((Path(folder) / "config.json").read_text()).get("vision_config")
        if not isinstance(vision, dict) or not {"image_size", "patch_size"} <= vision.keys():
            raise ValueError(f"{folder}/config.json has no vision_config with image_size and patch_size")
        statistics = load_statistics(Path(folder) / "norm_stats.json")
        return cls(PolicyTokens.load(folder), statistics, (vision["image_size"] // vision["patch_size"]) ** 2)

    def observation(self, images: Mapping[str, Image], instruction: str, state: npt.ArrayLike) -> Observation:
        """What the robot sees (by camera), is told, and is (S,) in its own units.

        Raises:
            ValueError: cameras are missing or unknown, an image is none, or the state is no vector of such a robot.
        """
        normalized = self._of("state").normalize(state)
        prefix = self.tokens.prefix(instruction, normalized)
        return Observation(model_input(prefix, images, self.tokens_per_image), normalized)

    def demonstration(self, observation: Observation, actions: npt.ArrayLike) -> types.Datum:
        """A datum for `cross_entropy`: actions (H, D), in the robot's units, are what is to be done here.

        Raises:
            ValueError: they are no chunk.
        """
        target = self.tokens.target(self._of("actions").normalize(actions))
        return _datum(observation, target.tokens, target.weights, target.token_ar_mask)

    def experience(
        self, observation: Observation, tokens: Sequence[int], logprobs: Sequence[float], advantage: float
    ) -> types.Datum:
        """A datum for `importance_sampling` or `ppo`: sampled tokens, their log-probabilities, their worth.

        Raises:
            ValueError: there are no tokens, or not as many log-probabilities.
        """
        ones = [1] * len(tokens)
        return _datum(observation, tokens, ones, ones, logprobs, [advantage] * len(tokens))

    def actions(self, normalized: npt.ArrayLike) -> Actions:
        """A policy's actions (..., D) in the robot's units."""
        return self._of("actions").unnormalize(normalized)

    def decode(self, tokens: Sequence[int], horizon: int, action_dim: int) -> DecodedActions:
        """The chunk (H, D) that tokens say, in the robot's units; see `PolicyTokens.actions`."""
        decoded = self.tokens.actions(tokens, horizon, action_dim)
        return DecodedActions(self.actions(decoded.actions), decoded.ok)

    def _of(self, name: str) -> Statistics:
        if name not in self.statistics:
            raise ValueError(f"the statistics have {sorted(self.statistics)}, not {name}")
        return self.statistics[name]


def build_openpi_fast_datum(  # noqa: PLR0913  # the parts of a datum
    *,
    prefix_tokens: Sequence[int],
    image_bytes_by_camera: Mapping[str, Image],
    state: npt.ArrayLike,
    target_tokens: Sequence[int],
    weights: Sequence[float],
    token_ar_mask: Sequence[int],
    logprobs: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    expected_tokens: int | None = PI0_TOKENS_PER_IMAGE,
) -> types.Datum:
    """A datum of the pi0-FAST policy from its parts; `OpenPIProcessor` makes the parts.

    Args:
        prefix_tokens: what the policy is told.
        image_bytes_by_camera: one for each of `CAMERA_LAYOUT`.
        state: (S,), normalised.
        target_tokens: (T,), what follows the prefix; `weights` (T,) of each in the loss, and `token_ar_mask` (T,).
        logprobs: (T,), with which the tokens were sampled, and `advantages` (T,): both, or neither.
        expected_tokens: of each image; None leaves it to the server.

    Raises:
        ValueError: a part does not fit the others, or is none; names it.
    """
    observation = Observation(model_input(prefix_tokens, image_bytes_by_camera, expected_tokens), _vector(state))
    return _datum(observation, target_tokens, weights, token_ar_mask, logprobs, advantages)


def model_input(
    prefix_tokens: Sequence[int], images: Mapping[str, Image], expected_tokens: int | None
) -> types.ModelInput:
    """Three image chunks in the order of `CAMERA_LAYOUT`, and one of text.

    Raises:
        ValueError: the cameras are others, an image is neither PNG nor JPEG, or there are no tokens.
    """
    from tinker import types  # noqa: PLC0415

    if set(images) != set(CAMERA_LAYOUT):
        raise ValueError(f"image_bytes_by_camera must have exactly {list(CAMERA_LAYOUT)}, has {sorted(images)}")
    if not len(prefix_tokens):
        raise ValueError("prefix_tokens must have at least one token")
    chunks: list[types.ModelInputChunk] = []
    for camera in CAMERA_LAYOUT:
        data, image_format = _file(images[camera], camera)
        chunks.append(types.ImageChunk(data=data, format=image_format, expected_tokens=expected_tokens))
    chunks.append(types.EncodedTextChunk(tokens=[int(token) for token in prefix_tokens]))
    return types.ModelInput(chunks=chunks)


def _file(image: Image, camera: str) -> tuple[bytes, ImageFormat]:
    if not isinstance(image, bytes):
        return encode_image(np.asarray(image)), "png"
    for magic, image_format in MAGIC.items():
        if image.startswith(magic):
            return image, image_format
    raise ValueError(f"the image of {camera} is neither PNG nor JPEG")


def _datum(
    observation: Observation,
    target_tokens: Sequence[int],
    weights: Sequence[float],
    token_ar_mask: Sequence[int],
    logprobs: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
) -> types.Datum:
    from tinker import types  # noqa: PLC0415

    if (logprobs is None) != (advantages is None):
        raise ValueError("logprobs and advantages must be given together")
    inputs: dict[str, Vector] = {
        "state": observation.state,
        "target_tokens": _integers("target_tokens", target_tokens),
        "weights": np.asarray(weights, np.float32),
        "token_ar_mask": _integers("token_ar_mask", token_ar_mask),
    }
    if logprobs is not None and advantages is not None:
        inputs["logprobs"] = np.asarray(logprobs, np.float32)
        inputs["advantages"] = np.asarray(advantages, np.float32)
    _check_lengths(inputs)
    tensors = {name: types.TensorData.from_numpy(array) for name, array in inputs.items()}
    return types.Datum(model_input=observation.model_input, loss_fn_inputs=tensors)


def _check_lengths(inputs: Mapping[str, Vector]) -> None:
    shapes = {name: array.shape for name, array in inputs.items() if name != "state"}
    length = len(inputs["target_tokens"]) if inputs["target_tokens"].ndim == 1 else 0
    if not length or any(shape != (length,) for shape in shapes.values()):
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"must be vectors of one length, at least 1: {said}")


def _integers(name: str, values: Sequence[int]) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "biu":  # numpy would cut 1.5 to 1
        raise ValueError(f"{name} must be whole numbers")
    return array.astype(np.int64)


def _vector(state: npt.ArrayLike) -> Actions:
    vector = np.asarray(state, np.float32)
    if vector.ndim != 1:
        raise ValueError(f"state must be a vector, is {vector.shape}")
    return vector
