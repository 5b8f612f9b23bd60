"""What each loss takes: its inputs and its settings.

Torch-free, so that a bad request is refused before it is queued. The functions themselves are in
`mint.engine.losses`; a test holds the two tables to the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.engine.core import Datum, ForwardBackward, Int32Array, Int64Array, LossInput, ModelInfo
from mint.engine.loss_graph import check_custom_inputs, check_custom_size
from mint.engine.rollout_correction import response_tokens
from mint.errors import BadRequestError

MAX_TARGETS = 1 << 22
"""Targets of one datum, N·K of them where each position has K: 32 MiB as they are sent."""

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LossSpec:
    """What a loss takes beside `target_tokens` and `weights`; inputs that it does not know it leaves alone.

    Attributes:
        required: inputs (N,) that each datum must carry.
        optional: inputs (N,) that a datum may carry.
        config: settings and their defaults.
        per_token_settings: those that a datum may also carry as an input (N,), which then holds for that datum.
        many_targets: targets and weights may also be (N, K), K for each position.
        per_token: a token's gradient needs that token only, not others of its datum.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    config: Mapping[str, float] = field(default_factory=dict)
    per_token_settings: tuple[str, ...] = ()
    many_targets: bool = False
    per_token: bool = True


CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
CLIP_LOW, CLIP_HIGH = CLIP
POLICY_INPUTS = ("logprobs", "advantages")
NOT_NEGATIVE = {*CLIP, "sequence_ratio_mask"}

CLIPPED = LossSpec(required=POLICY_INPUTS, config=CLIP, per_token_settings=tuple(CLIP))
"""Losses that clip the ratio of one token."""

LOSS_SPECS: dict[str, LossSpec] = {
    "cross_entropy": LossSpec(many_targets=True),
    "importance_sampling": LossSpec(required=POLICY_INPUTS),
    "ppo": CLIPPED,
    "cispo": CLIPPED,
    "dro": LossSpec(required=POLICY_INPUTS, config={"beta": 0.05}),
    "gspo": replace(CLIPPED, required=(*POLICY_INPUTS, "sequence_ratio_mask"), per_token=False),
    "custom": LossSpec(many_targets=True, per_token=False),
}


def check_forward_backward(command: ForwardBackward, model: ModelInfo) -> ForwardBackward:
    """Refuse what cannot be computed; returns the command with defaults filled in.

    `weights` default to 1; inputs that the loss does not use are dropped, and so is rollout correction but for
    importance_sampling, whose data then all have a `mask`. All data of a pass have the same inputs: where one brings
    a threshold for each token, the others get what is configured.

    Raises:
        BadRequestError: naming the datum, the field and the limit.
    """
    spec = _spec(command)
    if not command.data:
        raise BadRequestError("is empty; a pass needs at least one datum", field="data")
    if command.loss_graph is not None:
        check_custom_size(command.loss_graph, len(command.data))
    command = replace(
        command,
        loss_config=check_config(command, spec),
        rollout_correction=command.rollout_correction if command.loss_fn == "importance_sampling" else None,
    )
    data = [_check_datum(index, command, spec, model) for index in range(len(command.data))]
    brought = {name for name in spec.per_token_settings for datum in data if name in datum.loss_inputs}
    settings = {name: command.loss_config[name] for name in brought}
    return replace(command, data=tuple(_with_settings(datum, settings) for datum in data) if settings else tuple(data))


def _spec(command: ForwardBackward) -> LossSpec:
    served = f"served are {', '.join(LOSS_SPECS)}"
    if command.loss_fn == "stable_reinforce":
        raise BadRequestError(
            f"stable_reinforce's formula is unpublished, so it is not served; {served}", field="loss_fn"
        )
    spec = LOSS_SPECS.get(command.loss_fn)
    if spec is None:
        raise BadRequestError(f"{command.loss_fn!r} is not served; {served}", field="loss_fn")
    if command.loss_fn == "custom" and command.loss_graph is None:
        raise BadRequestError("is missing; a custom loss is uploaded first", field="loss_fn_config.loss_id")
    correction = command.rollout_correction
    if command.loss_fn != "importance_sampling" or correction is None:
        return spec
    clips = CLIPPED if correction.loss_type == "ppo_clip" else spec
    return replace(clips, optional=("mask",), per_token=correction.per_token)


def check_config(command: ForwardBackward, spec: LossSpec) -> dict[str, float]:
    """The settings of a pass, defaults filled in.

    Raises:
        BadRequestError: one is unknown, or is not finite, or below 0.
    """
    for name, value in command.loss_config.items():
        where = f"loss_fn_config.{name}"
        if name not in spec.config:
            known = ", ".join(spec.config) or "none"
            raise BadRequestError(f"{command.loss_fn} has no setting {name!r}; it has {known}", field="loss_fn_config")
        if not abs(value) <= LARGEST:
            raise BadRequestError(f"must be finite as float32, is {value}", field=where)
        if value < 0:
            raise BadRequestError(f"must be 0 or more, is {value}", field=where)
    return {**spec.config, **command.loss_config}


def _check_datum(index: int, command: ForwardBackward, spec: LossSpec, model: ModelInfo) -> Datum:
    datum = command.data[index]
    path = f"data[{index}]"
    check_input_tokens(datum.tokens, model, f"{path}.model_input", index)
    targets = _check_targets(index, datum, spec, model)
    if command.loss_graph is not None:
        custom = check_custom_inputs(index, datum, command.loss_graph)
        return replace(datum, loss_inputs={**custom, "target_tokens": targets})
    inputs: dict[str, LossInput] = {"target_tokens": targets, "weights": np.ones(targets.shape, np.float32)}
    refuse_settings(index, datum, spec)
    for name in ("weights", *spec.required, *spec.optional, *spec.per_token_settings):
        value = datum.loss_inputs.get(name)
        where = f"{path}.loss_fn_inputs.{name}"
        if value is not None:
            inputs[name] = check_numbers(where, index, name, value, targets.shape)
        elif name in spec.required:
            raise BadRequestError("is missing", field=where, datum=index)
    if spec.per_token_settings:
        check_clip(index, inputs, command.loss_config)
    if command.rollout_correction is not None and "mask" not in inputs:
        mask = response_tokens(*(inputs[name] for name in ("weights", *POLICY_INPUTS)))
        inputs["mask"] = mask.astype(np.float32)
    return replace(datum, loss_inputs=inputs)


def _with_settings(datum: Datum, settings: Mapping[str, float]) -> Datum:
    filled = {name: np.full(len(datum.tokens), value, np.float32) for name, value in settings.items()}
    return replace(datum, loss_inputs={**filled, **datum.loss_inputs})


def refuse_settings(index: int, datum: Datum, spec: LossSpec) -> None:
    """Refuse inputs that stand for a setting which is the whole request's.

    Raises:
        BadRequestError: there is one.
    """
    for name in spec.config:
        if name in datum.loss_inputs and name not in spec.per_token_settings:
            raise BadRequestError(
                "is not taken for each token; set it in loss_fn_config",
                field=f"data[{index}].loss_fn_inputs.{name}",
                datum=index,
            )


def check_input_tokens(tokens: Int32Array, model: ModelInfo, where: str, index: int) -> None:
    """Refuse an input (N,) that is empty, longer than the context, or has ids outside the vocabulary.

    Raises:
        BadRequestError: naming the limit.
    """
    length = len(tokens)
    if length == 0:
        raise BadRequestError("has no tokens", field=where, datum=index)
    if length > model.max_context_length:
        raise BadRequestError(
            f"has {length} tokens; {model.name} takes at most {model.max_context_length}",
            field=where,
            datum=index,
        )
    check_token_ids(tokens, model, where, index)


def _check_targets(index: int, datum: Datum, spec: LossSpec, model: ModelInfo) -> Int64Array:
    where = f"data[{index}].loss_fn_inputs.target_tokens"
    targets = datum.loss_inputs.get("target_tokens")
    if targets is None:
        raise BadRequestError("is missing", field=where, datum=index)
    length = len(datum.tokens)
    rows = targets.ndim == 2 and targets.shape[0] == length and targets.shape[1] > 0
    if targets.shape != (length,) and not (spec.many_targets and rows):
        also = f", or ({length}, K) for K targets each" if spec.many_targets else ""
        raise BadRequestError(
            f"has shape {tuple(targets.shape)}; model_input has {length} tokens, so it must be ({length},){also}",
            field=where,
            datum=index,
        )
    if targets.size > MAX_TARGETS:
        raise BadRequestError(
            f"has {length} × {targets.shape[-1]} targets; a datum takes at most {MAX_TARGETS}",
            field=where,
            datum=index,
        )
    if targets.dtype != np.int64:
        raise BadRequestError(f"must be integers, is {targets.dtype}", field=where, datum=index)
    check_token_ids(targets, model, where, index)
    return targets.astype(np.int64, copy=False)


def check_numbers(where: str, index: int, name: str, value: LossInput, shape: tuple[int, ...]) -> LossInput:
    """The numbers of an input as float32.

    Raises:
        BadRequestError: it has another shape, or one of them is not finite, or is below 0 where it must not be.
    """
    if value.shape != shape:
        raise BadRequestError(
            f"has shape {tuple(value.shape)}; there are targets for {shape[0]} tokens, so it must be {shape}",
            field=where,
            datum=index,
        )
    bad = ~np.isfinite(value)
    if bad.any():
        raise BadRequestError(f"is {_entry(value, bad)}", field=where, datum=index)
    if name in NOT_NEGATIVE and (bad := value < 0).any():
        raise BadRequestError(f"is {_entry(value, bad)}; it must be 0 or more", field=where, datum=index)
    return value.astype(np.float32, copy=False)


def check_clip(index: int, inputs: Mapping[str, LossInput], config: Mapping[str, float]) -> None:
    """The lower threshold of a token, its own or the configured one, must not exceed the upper.

    Raises:
        BadRequestError: it does.
    """
    own = [name for name in CLIP if name in inputs]
    low, high = (np.asarray(inputs.get(name, config[name]), np.float32) for name in CLIP)
    crossed = low > high
    if not crossed.any():
        return
    if not own:
        raise BadRequestError(f"is {low}, above {CLIP_HIGH} {high}", field=f"loss_fn_config.{CLIP_LOW}")
    place = int(np.argmax(crossed))
    low, high = (np.broadcast_to(bound, crossed.shape)[place] for bound in (low, high))
    raise BadRequestError(
        f"at position {place} {CLIP_LOW} is {low}, above {CLIP_HIGH} {high}",
        field=f"data[{index}].loss_fn_inputs.{own[0]}",
        datum=index,
    )


def check_token_ids(
    tokens: Int32Array | LossInput,
    model: ModelInfo,
    where: str,
    datum: int | None = None,
) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        BadRequestError: naming the first such position.
    """
    outside = (tokens < 0) | (tokens >= model.vocab_size)
    if outside.any():
        raise BadRequestError(
            f"token {_entry(tokens, outside)} is outside the vocabulary of {model.name}, 0 to {model.vocab_size - 1}",
            field=where,
            datum=datum,
        )


def _entry(array: npt.NDArray[Any], bad: npt.NDArray[np.bool_]) -> str:
    """The first bad entry and its place: "nan at position 3", or for (N, K) "nan at position 3, 1"."""
    place = np.unravel_index(int(np.argmax(bad)), array.shape)
    return f"{array[place]} at position {', '.join(map(str, place))}"
