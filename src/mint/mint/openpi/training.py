"""Training clients of robot policies: those of the SDK, with a `train_step`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mint.mint.training import train_step
from mint.openpi import OPENPI_FAST_LORA_RANK, OPENPI_FAST_MODEL

if TYPE_CHECKING:
    from tinker import APIFuture, ServiceClient, TrainingClient, types


class OpenPITrainingClient:
    """A training client of the SDK; whatever is not here is its own."""

    def __init__(self, training_client: TrainingClient) -> None:
        self.training_client = training_client

    @property
    def model_id(self) -> str:
        """The id of the run."""
        return str(self.training_client.model_id)

    def train_step(
        self,
        data: Sequence[types.Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
        adam_params: types.AdamParams | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`forward_backward` and `optim_step` on these data as one operation and one request; see `mintx.train_step`.

        Args:
            adam_params: None is the SDK's default.
        """
        from tinker import types  # noqa: PLC0415

        params = types.AdamParams() if adam_params is None else adam_params
        return train_step(self.training_client, data, loss_fn, params, loss_fn_config)

    async def train_step_async(
        self,
        data: Sequence[types.Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
        adam_params: types.AdamParams | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """As `train_step`; what is awaited is the future, as with the SDK's own `_async` methods."""
        return self.train_step(data, loss_fn, loss_fn_config, adam_params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.training_client, name)


def create_openpi_training_client(
    service_client: ServiceClient,
    *,
    base_model: str = OPENPI_FAST_MODEL,
    rank: int = OPENPI_FAST_LORA_RANK,
    create_timeout_seconds: float | None = None,
    user_metadata: Mapping[str, str] | None = None,
) -> OpenPITrainingClient:
    """A new run on a robot policy's base model, its LoRA on all kinds of layers.

    Raises:
        TimeoutError: there is no run after `create_timeout_seconds`.
    """
    created = _create(service_client, base_model, rank, user_metadata)
    return OpenPITrainingClient(created.result(create_timeout_seconds))


async def create_openpi_training_client_async(
    service_client: ServiceClient,
    *,
    base_model: str = OPENPI_FAST_MODEL,
    rank: int = OPENPI_FAST_LORA_RANK,
    create_timeout_seconds: float | None = None,
    user_metadata: Mapping[str, str] | None = None,
) -> OpenPITrainingClient:
    """As `create_openpi_training_client`."""
    created = _create(service_client, base_model, rank, user_metadata)
    async with asyncio.timeout(create_timeout_seconds):
        return OpenPITrainingClient(await created)


def _create(
    service: ServiceClient, base_model: str, rank: int, user_metadata: Mapping[str, str] | None
) -> APIFuture[TrainingClient]:
    metadata = dict(user_metadata) if user_metadata is not None else None
    return service.create_lora_training_client(base_model, rank=rank, user_metadata=metadata)
