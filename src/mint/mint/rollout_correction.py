"""Runs whose importance sampling is corrected for the difference between sampler and trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from reprlib import repr as shown
from typing import TYPE_CHECKING, Literal

from mint.client.submission import create_run

if TYPE_CHECKING:
    from tinker import APIFuture, ServiceClient, TrainingClient

ESTIMATORS = (
    *(f"{level}_{estimator}" for level in ("token", "seq_sum", "seq_mean") for estimator in ("k1", "k2", "k3")),
    "seq_max_k2",
    "seq_max_k3",
)


@dataclass(frozen=True, kw_only=True)
class RolloutCorrectionConfig:
    """How a run's `importance_sampling` passes are corrected, under verl's names. ρ = exp(p − q) of a token.

    Attributes:
        rollout_is: weigh each token by its own ρ, or by the product over its sequence; None: all weights are 1.
        rollout_is_threshold: a weight above it is cut to it. Text "low_high" instead makes weights outside 0.
        rollout_is_batch_normalize: divide weights by their mean over the request.
        rollout_rs: what must lie in bounds to stay in the loss, a comma list of `ESTIMATORS`; None: everything stays.
        rollout_rs_threshold: their bounds, a comma list of as many. For k1, "low_high" of ρ, or u for "1/u_u"; for k2
            and k3 the largest estimate.
        bypass_mode: the sampler's log-probabilities are those of the old policy. The one mode there is.
        loss_type: "reinforce" is −weight·p·A; "ppo_clip" clips ρ instead.

    Raises:
        ValueError, TypeError: a field is none of these; names it.
    """

    rollout_is: Literal["token", "sequence"] | None = None
    rollout_is_threshold: float | str = 2.0
    rollout_is_batch_normalize: bool = False
    rollout_rs: str | None = None
    rollout_rs_threshold: float | str | None = None
    bypass_mode: bool = True
    loss_type: Literal["reinforce", "ppo_clip"] = "ppo_clip"

    def __post_init__(self) -> None:
        _check_choice("rollout_is", self.rollout_is, (None, "token", "sequence"))
        _check_choice("rollout_is_batch_normalize", self.rollout_is_batch_normalize, (False, True))
        _check_choice("bypass_mode", self.bypass_mode, (True,))
        _check_choice("loss_type", self.loss_type, ("reinforce", "ppo_clip"))
        _bounds("rollout_is_threshold", _text("rollout_is_threshold", self.rollout_is_threshold))
        self._check_rejection()

    def _check_rejection(self) -> None:
        name = "rollout_rs_threshold"
        if not isinstance(self.rollout_rs, str | None):
            raise TypeError(f"rollout_rs must be text, is {shown(self.rollout_rs)}")
        estimators = _parts(self.rollout_rs)
        thresholds = _parts(_text(name, self.rollout_rs_threshold) if self.rollout_rs_threshold is not None else None)
        for estimator in estimators:
            _check_choice("rollout_rs", estimator, ESTIMATORS)
        if len(set(estimators)) < len(estimators):
            raise ValueError("rollout_rs names an estimator twice")
        if len(thresholds) != len(estimators):
            raise ValueError(f"{name} has {len(thresholds)} bounds for the {len(estimators)} estimators of rollout_rs")
        for estimator, threshold in zip(estimators, thresholds, strict=True):
            bounds = _bounds(name, threshold)
            if not estimator.endswith("k1") and len(bounds) > 1:
                raise ValueError(f"{name} of {estimator} must be one number, is {shown(threshold)}")
            if estimator.endswith("k1") and len(bounds) == 1 and bounds[0] < 1:
                raise ValueError(f"{name} of {estimator} must be 1 or more, is {shown(threshold)}")


def create_lora_training_client(  # noqa: PLR0913, PLR0917  # those of the SDK, in their order
    service_client: ServiceClient,
    base_model: str,
    rank: int = 32,
    seed: int | None = None,
    train_mlp: bool = True,
    train_attn: bool = True,
    train_unembed: bool = True,
    user_metadata: Mapping[str, str] | None = None,
    *,
    rollout_correction_config: RolloutCorrectionConfig,
) -> APIFuture[TrainingClient]:
    """As `ServiceClient.create_lora_training_client`, of a run with a rollout correction, which it keeps.

    So do the runs that are made from its checkpoints. Use `.result()`, or await what it returns.

    Raises:
        TypeError: an argument is not of its type. What the server refuses, the future raises.
    """
    if not isinstance(rollout_correction_config, RolloutCorrectionConfig):
        raise TypeError("rollout_correction_config must be a RolloutCorrectionConfig")
    shape = {"rank": rank, "seed": seed, "train_mlp": train_mlp, "train_attn": train_attn}
    request = {
        "lora_config": {**shape, "train_unembed": train_unembed},
        "user_metadata": dict(user_metadata) if user_metadata is not None else None,
        "rollout_correction_config": asdict(rollout_correction_config),
    }
    return create_run(service_client, base_model, request)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # 1 equals True, and is none
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ValueError(f"{name} is {shown(value)}; it can be {' or '.join(map(str, choices))}")


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",")] if text is not None else []


def _text(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{name} must be a number, or text like '0.5_2.0', is {shown(value)}")
    return str(value)


def _bounds(name: str, text: str) -> list[float]:
    try:
        bounds = [float(part) for part in text.split("_")]
    except ValueError:
        bounds = []
    if len(bounds) not in (1, 2) or bounds != sorted(bounds) or not all(0 < bound < math.inf for bound in bounds):
        raise ValueError(f"{name} is {shown(text)}; it must be a positive number, or two as in '0.5_2.0'")
    return bounds
