"""Rollout correction: how a run weighs and rejects tokens whose sampler and trainer disagree.

Names and meanings are those of verl's public documentation of rollout correction (Liu, Li et al., 2025, "When Speed
Kills Stability"). Torch-free: the server checks a configuration when the run is created; `mint.engine.corrections`
computes it.

ρ = exp(log ρ) is a token's probability under the current weights over that under the policy that drew it, the
client's `logprobs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from mint.errors import BadRequestError

Level: TypeAlias = Literal["token", "sequence"]
LossType: TypeAlias = Literal["reinforce", "ppo_clip"]
Aggregate: TypeAlias = Literal["token", "seq_sum", "seq_mean", "seq_max"]
Estimator: TypeAlias = Literal["k1", "k2", "k3"]
Choice = TypeVar("Choice", Level, LossType)

FIELD = "rollout_correction_config"
NAMES = (
    "rollout_is",
    "rollout_is_threshold",
    "rollout_is_batch_normalize",
    "rollout_rs",
    "rollout_rs_threshold",
    "bypass_mode",
    "loss_type",
)
DEFAULT_THRESHOLD = 2.0

REJECTIONS: dict[str, tuple[Aggregate, Estimator]] = {
    f"{aggregate}_{estimator}": (aggregate, estimator)
    for aggregate in get_args(Aggregate)
    for estimator in get_args(Estimator)
    if (aggregate, estimator) != ("seq_max", "k1")  # k1 has both signs: its largest is not its worst
}


@dataclass(frozen=True)
class Rejection:
    """Keep the tokens, or all tokens of the sequences, whose estimate lies in [low, high].

    Per token k1 = −log ρ, k2 = ½·(log ρ)², k3 = ρ − 1 − log ρ (Schulman, 2020, "Approximating KL divergence");
    `aggregate` says what of a sequence's tokens is compared. Bounds are on the estimate itself: for k1 logarithms of
    the ratios that were configured, for k2 and k3 −∞ and the number that was.
    """

    aggregate: Aggregate
    estimator: Estimator
    low: float
    high: float


@dataclass(frozen=True)
class RolloutCorrection:
    """A checked configuration.

    Attributes:
        rollout_is: whether a weight is a token's own ρ or the product over its sequence; None: weights are 1.
        low, high: a weight above `high` becomes `high`; with `low`, one outside [low, high] becomes 0 instead.
        rollout_is_batch_normalize: weights are divided by their mean over the pass.
        rejections: what a token must pass, all of it, to stay in the loss.
        loss_type: "reinforce" is −weight·p·A; "ppo_clip" clips ρ instead, and weights are only measured.
    """

    rollout_is: Level | None
    low: float | None
    high: float
    rollout_is_batch_normalize: bool
    rejections: tuple[Rejection, ...]
    loss_type: LossType

    @property
    def per_token(self) -> bool:
        """Whether a token is corrected by what is known of that token alone."""
        alone = all(rejection.aggregate == "token" for rejection in self.rejections)
        return alone and self.rollout_is != "sequence" and not self.rollout_is_batch_normalize


def parse_rollout_correction(config: Mapping[str, object]) -> RolloutCorrection:
    """Check a `rollout_correction_config`.

    What is absent or null has the documented default: threshold 2.0, no rejection, "ppo_clip"; no `rollout_is` means
    no weights, since clients drop nulls. `bypass_mode` can only be true, and is when absent.

    Raises:
        BadRequestError: naming the field and what it may be.
    """
    for name in config:
        if name not in NAMES:
            raise BadRequestError(f"is unknown; known are {', '.join(NAMES)}", field=f"{FIELD}.{name}")
    if not _flag(config, "bypass_mode", default=True):
        raise BadRequestError(
            "false asks for a third policy, that of the start of each epoch of updates: a datum carries the logprobs "
            "of one policy only, and the server cannot tell where an epoch starts; only true is served",
            field=f"{FIELD}.bypass_mode",
        )
    rollout_is: Level | None = _choice(config, "rollout_is", get_args(Level))
    loss_type: LossType | None = _choice(config, "loss_type", get_args(LossType))
    low, high = _weight_bounds(config)
    return RolloutCorrection(
        rollout_is=rollout_is,
        low=low,
        high=high,
        rollout_is_batch_normalize=_flag(config, "rollout_is_batch_normalize", default=False)
        and rollout_is is not None,
        rejections=_rejections(config),
        loss_type=loss_type or "ppo_clip",
    )


def response_tokens(weights: Any, logprobs: Any, advantages: Any) -> Any:
    """Which tokens are looked at where the client does not say: those of the loss that are not filled with zeros.

    Clients fill the prompt's logprobs and advantages with zeros. Takes and returns arrays or tensors alike.
    """
    return (weights != 0) & ~((logprobs == 0) & (advantages == 0))


def _flag(config: Mapping[str, object], name: str, *, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequestError(f"must be true or false, is {shown(value)}", field=f"{FIELD}.{name}")
    return value


def _choice(config: Mapping[str, object], name: str, choices: tuple[Choice, ...]) -> Choice | None:
    value = config.get(name)
    if value is None:
        return None
    for choice in choices:
        if value == choice:
            return choice
    raise BadRequestError(f"is {shown(value)}; it can be {' or '.join(choices)}", field=f"{FIELD}.{name}")


def _weight_bounds(config: Mapping[str, object]) -> tuple[float | None, float]:
    name = "rollout_is_threshold"
    value = config.get(name)
    bounds = [DEFAULT_THRESHOLD] if value is None else _bounds(_text(value, name), name)
    return (bounds[0] if len(bounds) > 1 else None), bounds[-1]


def _rejections(config: Mapping[str, object]) -> tuple[Rejection, ...]:
    names = _list(config, "rollout_rs")
    thresholds = _list(config, "rollout_rs_threshold")
    for name in names:
        if name not in REJECTIONS:
            raise BadRequestError(
                f"{shown(name)} is unknown; known are {', '.join(REJECTIONS)}", field=f"{FIELD}.rollout_rs"
            )
    if len(set(names)) < len(names):
        raise BadRequestError("names an estimator twice", field=f"{FIELD}.rollout_rs")
    if len(thresholds) != len(names):
        raise BadRequestError(
            f"has {len(thresholds)} thresholds for the {len(names)} estimators of rollout_rs",
            field=f"{FIELD}.rollout_rs_threshold",
        )
    return tuple(_rejection(name, text) for name, text in zip(names, thresholds, strict=True))


def _rejection(name: str, threshold: str) -> Rejection:
    aggregate, estimator = REJECTIONS[name]
    field = "rollout_rs_threshold"
    bounds = _bounds(threshold, field)
    if estimator == "k1":
        low, high = (1 / bounds[0], bounds[0]) if len(bounds) == 1 else bounds
        if low > high:
            raise BadRequestError(f"{shown(threshold)} for {name} must be 1 or more", field=f"{FIELD}.{field}")
        return Rejection(aggregate, estimator, math.log(low), math.log(high))
    if len(bounds) > 1:
        raise BadRequestError(f"{shown(threshold)} for {name} must be one number", field=f"{FIELD}.{field}")
    return Rejection(aggregate, estimator, -math.inf, bounds[0])


def _list(config: Mapping[str, object], name: str) -> list[str]:
    """The parts of a comma list; none for null."""
    value = config.get(name)
    if value is None:
        return []
    if name == "rollout_rs" and not isinstance(value, str):
        raise BadRequestError(f"must be text, is {shown(value)}", field=f"{FIELD}.{name}")
    return [part.strip() for part in _text(value, name).split(",")]


def _text(value: object, name: str) -> str:
    """A threshold as text: what can be a number or text is read in one way."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadRequestError(f"must be a number, or text like '0.5_2.0', is {shown(value)}", field=f"{FIELD}.{name}")
    return str(value)


def _bounds(text: str, name: str) -> list[float]:
    """`"high"` or `"low_high"`."""
    try:
        bounds = [float(part) for part in text.split("_")]
    except ValueError:
        bounds = []
    good = len(bounds) in (1, 2) and all(0 < bound < math.inf for bound in bounds) and sorted(bounds) == bounds
    if not good:
        raise BadRequestError(
            f"is {shown(text)}; it must be a positive number, or two as in '0.5_2.0', the smaller first",
            field=f"{FIELD}.{name}",
        )
    return bounds
