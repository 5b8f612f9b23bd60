"""Checkpoints beyond the SDK: sums of them, and weights that are saved and sampled in one operation.

Each call returns the SDK's `APIFuture` at once, for `.result()` or `await`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mint.client.submission import sampling_client, submit, submit_alone

if TYPE_CHECKING:
    from tinker import APIFuture, SamplingClient, ServiceClient, TrainingClient


@dataclass(frozen=True)
class InterpolatedCheckpoint:
    """A checkpoint for sampling whose ΔW is Σ cᵢ·ΔWᵢ of others; `path` is its own."""

    path: str
    source_paths: tuple[str, ...]
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class SavedSampler:
    """Saved weights and a client that samples them; `path` is None for those without a name."""

    sampling_client: SamplingClient
    path: str | None


def interpolate_checkpoints(
    service_client: ServiceClient,
    source_paths: Sequence[str],
    coefficients: Sequence[float],
    output_path: str | None = None,
    *,
    ttl_seconds: int | None = None,
    user_metadata: Mapping[str, str] | None = None,
) -> APIFuture[InterpolatedCheckpoint]:
    """Make a checkpoint whose update of the base model is exactly the weighted sum of others': ΔW = Σ cᵢ·ΔWᵢ.

    Its rank is the sum of theirs, of each checkpoint once. It can be sampled, published and downloaded, and trained on
    with `create_training_client_from_state`.

    Args:
        source_paths: checkpoints of one base model, for training or for sampling; their ranks and layers may differ.
        coefficients: one for each; they need not add up to 1, and may be negative.
        output_path: a name, for a run of its own, or `tinker://RUN/sampler_weights/NAME` of a run of yours.

    Raises:
        TypeError, ValueError: the coefficients are not as many finite numbers. What the server refuses (ranks that are
            more than its limit in sum, say), the future raises.
    """
    numbers = tuple(map(float, coefficients))
    if len(numbers) != len(source_paths):
        raise ValueError(f"there are {len(source_paths)} source_paths and {len(numbers)} coefficients")
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"coefficients must be finite, are {numbers}")
    request = {
        "source_paths": list(source_paths),
        "coefficients": numbers,
        "output_path": output_path,
        "ttl_seconds": ttl_seconds,
        "user_metadata": dict(user_metadata) if user_metadata is not None else None,
    }

    def read(answer: dict[str, Any]) -> InterpolatedCheckpoint:
        return InterpolatedCheckpoint(answer["path"], tuple(answer["source_paths"]), tuple(answer["coefficients"]))

    return submit_alone(service_client, "mint/checkpoints/interpolate", request, read)


def save_and_create(
    training_client: TrainingClient, name: str | None = None, *, ttl_seconds: int | None = None
) -> APIFuture[SavedSampler]:
    """Save the weights for sampling and make a client that samples them, in one operation.

    Args:
        name: the checkpoint's, which then stays when the session ends.
        ttl_seconds: how long to keep it; None is for ever.

    Raises:
        What the server refuses, the future raises.
    """
    request = {"name": name, "ttl_seconds": ttl_seconds}
    base_model = training_client.get_info().model_data.model_name

    async def read(answer: dict[str, Any]) -> SavedSampler:
        client = await sampling_client(training_client, answer["sampling_session_id"], base_model)
        return SavedSampler(client, answer["path"])

    return submit(training_client, "sampling_clients/save_and_create", request, dict, read)
