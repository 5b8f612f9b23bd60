"""What requests can refer to: the served base models, the folder of checkpoints, uploaded losses."""

from __future__ import annotations

from pathlib import Path

from mint.config import ServerConfig
from mint.dispatch.fleet import Fleet
from mint.engine.core import ModelInfo
from mint.errors import BadRequestError
from mint.server.losses import Losses
from mint.store.folders import CheckpointStore


class Catalog:
    """A view of the fleet and the configuration, for those who turn requests into commands."""

    def __init__(self, config: ServerConfig, fleet: Fleet, store: CheckpointStore) -> None:
        self.checkpoint_dir: Path = config.checkpoint_dir
        self.store = store
        self.losses = Losses()
        self._served = [source.name for source in config.models]
        self._fleet = fleet

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
