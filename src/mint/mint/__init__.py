"""What MinT offers its users beyond the Tinker SDK (usually `import mint.mint as mintx`).

Holds only what works today. Must not load the SDK, torch or the server; what is for robot policies, which needs
packages of its own, is loaded when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mint.client.discovery import Endpoint
from mint.client.discovery import resolve as _resolve
from mint.client.namespace import mint_version as _mint_version
from mint.mint.checkpoints import InterpolatedCheckpoint, SavedSampler, interpolate_checkpoints, save_and_create
from mint.mint.models import LiveModel, free_model, list_models
from mint.mint.rollout_correction import RolloutCorrectionConfig, create_lora_training_client
from mint.mint.training import ReverseKLDatum, ReverseKLOutput, forward_backward_reverse_kl, train_step
from mint.mint.transfers import download_checkpoint, upload_checkpoint
from mint.openpi import CAMERA_LAYOUT, OPENPI_FAST_LORA_RANK, OPENPI_FAST_MODEL

if TYPE_CHECKING:
    from mint.mint import openpi
    from mint.mint.openpi import (
        ActionSession,
        OpenPITrainingClient,
        build_openpi_fast_datum,
        create_action_session,
        create_openpi_training_client,
        create_openpi_training_client_async,
    )

_OPENPI = (
    "ActionSession",
    "OpenPITrainingClient",
    "build_openpi_fast_datum",
    "create_action_session",
    "create_openpi_training_client",
    "create_openpi_training_client_async",
)

__all__ = [
    "CAMERA_LAYOUT",
    "OPENPI_FAST_LORA_RANK",
    "OPENPI_FAST_MODEL",
    "ActionSession",
    "Endpoint",
    "InterpolatedCheckpoint",
    "LiveModel",
    "OpenPITrainingClient",
    "ReverseKLDatum",
    "ReverseKLOutput",
    "RolloutCorrectionConfig",
    "SavedSampler",
    "__version__",
    "build_openpi_fast_datum",
    "create_action_session",
    "create_lora_training_client",
    "create_openpi_training_client",
    "create_openpi_training_client_async",
    "credentials",
    "download_checkpoint",
    "forward_backward_reverse_kl",
    "free_model",
    "interpolate_checkpoints",
    "list_models",
    "openpi",
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

    def __getattr__(name: str) -> Any:
        if name == "openpi" or name in _OPENPI:
            try:
                module = import_module("mint.mint.openpi")
            except ModuleNotFoundError as error:
                needed = f"robot policies need the package {error.name}: pip install 'mint[vla]'"
                raise ModuleNotFoundError(needed, name=error.name) from error
            return module if name == "openpi" else getattr(module, name)
        raise AttributeError(f"mint.mint has no attribute {name!r}; it has: {', '.join(sorted(__all__))}")
