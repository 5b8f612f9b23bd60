"""What MinT offers its users beyond the Tinker SDK (usually `import mint.mint as mintx`).

Holds only what works today. Must not load the SDK, torch or the server.
"""

from typing import TYPE_CHECKING, NoReturn

from mint.client.discovery import Endpoint
from mint.client.discovery import resolve as _resolve
from mint.client.namespace import mint_version as _mint_version
from mint.mint.checkpoints import InterpolatedCheckpoint, SavedSampler, interpolate_checkpoints, save_and_create
from mint.mint.models import LiveModel, free_model, list_models
from mint.mint.rollout_correction import RolloutCorrectionConfig, create_lora_training_client
from mint.mint.training import ReverseKLDatum, ReverseKLOutput, forward_backward_reverse_kl, train_step
from mint.mint.transfers import download_checkpoint, upload_checkpoint

__all__ = [
    "Endpoint",
    "InterpolatedCheckpoint",
    "LiveModel",
    "ReverseKLDatum",
    "ReverseKLOutput",
    "RolloutCorrectionConfig",
    "SavedSampler",
    "__version__",
    "create_lora_training_client",
    "credentials",
    "download_checkpoint",
    "forward_backward_reverse_kl",
    "free_model",
    "interpolate_checkpoints",
    "list_models",
    "save_and_create",
    "train_step",
    "upload_checkpoint",
]

__version__ = _mint_version()


def credentials() -> Endpoint:
    """Where a client built now without arguments would go, with which key, and where both were found.

    The environment comes first, then the newest running server of this user on this machine. A field is
    None where nothing was found. The key does not show in the repr; read `.api_key` to get it.
    """
    return _resolve()


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers name a missing attribute themselves

    def __getattr__(name: str) -> NoReturn:
        raise AttributeError(f"mint.mint has no attribute {name!r}; it has: {', '.join(sorted(__all__))}")
