"""What requests can refer to: the served base models, the folder of checkpoints, uploaded losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mint.config import ServerConfig
from mint.dispatch.fleet import Fleet
from mint.engine.core import ModelInfo
from mint.errors import BadRequestError
from mint.openpi.fast import DecodedActions, FastCodec, read_tokenizer
from mint.openpi.prompts import PolicyTokens
from mint.server.images import ImageReader, PixelMemory
from mint.server.losses import Losses
from mint.store.folders import CheckpointStore


class Catalog:
    """A view of the fleet and the configuration, for those who turn requests into commands."""

    def __init__(self, config: ServerConfig, fleet: Fleet, store: CheckpointStore) -> None:
        self.checkpoint_dir: Path = config.checkpoint_dir
        self.store = store
        self.losses = Losses()
        self.pixels = PixelMemory()
        self._served = [source.name for source in config.models]
        self._fleet = fleet
        self._policy_tokens: dict[str, PolicyTokens] = {}

    @property
    def sees(self) -> bool:
        """Whether a served model takes images."""
        return any(model.vision is not None for model in self._fleet.models())

    def model(self, name: str) -> ModelInfo:
        """A served base model.

        Raises:
            BadRequestError: there is none of that name; the message names those there are.
        """
        info = self._fleet.model(name)
        if info is None:
            raise BadRequestError(
                f"{name!r} is not served here; served are {', '.join(self._served)}", field="base_model"
            )
        return info

    def image_reader(self, model: ModelInfo, owner: str) -> ImageReader | None:
        """For the images of one request of this owner; None for a model that sees nothing."""
        return ImageReader(model.vision, self.pixels, owner) if model.vision is not None else None

    def writer(self, name: str) -> ModelInfo:
        """A served base model that writes text.

        Raises:
            BadRequestError: there is none of that name, or it is a robot policy.
        """
        info = self.model(name)
        if info.policy is not None:
            raise BadRequestError(
                f"{name!r} is a robot policy: it acts in action sessions, and writes no text", field="base_model"
            )
        return info

    def actor(self, name: str) -> ModelInfo:
        """A served robot policy.

        Raises:
            BadRequestError: there is none of that name, or it is no policy.
        """
        info = self.model(name)
        if info.policy is None:
            raise BadRequestError(f"{name!r} is no robot policy", field="base_model")
        return info

    def decode_actions(self, name: str, tokens: Sequence[int]) -> DecodedActions:
        """The normalised actions that a policy's tokens say, whatever they are."""
        info = self.actor(name)
        assert info.policy is not None
        if name not in self._policy_tokens:
            text, codec = read_tokenizer(info.policy.tokenizer_folder), FastCodec.load(info.policy.codec_folder)
            self._policy_tokens[name] = PolicyTokens(text, codec, info.vocab_size)
        return self._policy_tokens[name].actions(tokens, info.policy.horizon, info.policy.action_dim)
