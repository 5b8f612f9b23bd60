"""What the losses of a robot policy take: openpi's layout of a datum, in which targets follow the prefix.

A datum comes with the tokens of its images and prefix (P,) and with T targets, which are appended: the last token of
the prefix predicts the first target. All of the prefix sees all of it; of the targets, `token_ar_mask` says which begin
a block of their own. Torch-free, so that a bad request is refused before it is queued.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mint.engine.core import Datum, FloatArray, ForwardBackward, Int64Array, LossInput, ModelInfo
from mint.engine.loss_specs import (
    LOSS_SPECS,
    POLICY_INPUTS,
    check_clip,
    check_config,
    check_numbers,
    check_token_ids,
    refuse_settings,
)
from mint.errors import BadRequestError

POLICY_LOSSES = ("cross_entropy", "importance_sampling", "ppo")


def check_policy_pass(command: ForwardBackward, model: ModelInfo) -> ForwardBackward:
    """Refuse what cannot be computed; returns the command with targets appended and defaults filled in.

    The loss of cross_entropy is openpi's: of a datum Σ w·nll / Σ w, of a request the mean over its datums. The others
    are sums, as for text.

    Raises:
        BadRequestError: naming the datum, the field and the limit.
    """
    if command.loss_fn == "flow_matching":
        raise BadRequestError(
            f"flow_matching trains pi0.5, which is not served; served are {', '.join(POLICY_LOSSES)}", field="loss_fn"
        )
    if command.loss_fn not in POLICY_LOSSES:
        raise BadRequestError(
            f"{command.loss_fn!r} is not served for {model.name}; served are {', '.join(POLICY_LOSSES)}",
            field="loss_fn",
        )
    if not command.data:
        raise BadRequestError("is empty; a pass needs at least one datum", field="data")
    is_mean, spec = command.loss_fn == "cross_entropy", LOSS_SPECS[command.loss_fn]
    command = replace(command, loss_config=check_config(command, spec), is_mean=is_mean)
    if spec.per_token_settings:
        check_clip(0, {}, command.loss_config)
    data = [_check_datum(index, command, model) for index in range(len(command.data))]
    return replace(command, data=tuple(_normalised(datum, len(data)) for datum in data) if is_mean else tuple(data))


def _check_datum(index: int, command: ForwardBackward, model: ModelInfo) -> Datum:
    datum = command.data[index]
    path = f"data[{index}].loss_fn_inputs"
    check_token_ids(datum.tokens, model, f"data[{index}].model_input", index)
    targets = _integers(datum, "target_tokens", path, index)
    check_token_ids(targets, model, f"{path}.target_tokens", index)
    length = len(datum.tokens) + len(targets) - 1
    if length > model.max_context_length:
        raise BadRequestError(
            f"has {len(datum.tokens)} tokens and {len(targets)} targets; {model.name} takes at most "
            f"{model.max_context_length}",
            field=f"data[{index}].model_input",
            datum=index,
        )
    mask = _mask(datum, len(targets), path, index)
    inputs: dict[str, LossInput] = {"target_tokens": targets, "weights": np.ones(len(targets), np.float32)}
    refuse_settings(index, datum, replace(LOSS_SPECS[command.loss_fn], per_token_settings=()))
    _check_state(datum.loss_inputs.get("state"), f"{path}.state", index)
    inputs |= _float_inputs(datum, command, targets, path, index)
    # the last target predicts nothing
    blocks = np.cumsum(np.concatenate([np.zeros(len(datum.tokens), np.int64), mask[:-1]]))
    tokens = np.concatenate([datum.tokens, targets[:-1]])
    return Datum(tokens.astype(np.int32), inputs, datum.images, blocks.astype(np.int32))


def _integers(datum: Datum, name: str, path: str, index: int) -> Int64Array:
    """An input (T,) of integers, T ≥ 1."""
    value = datum.loss_inputs.get(name)
    if value is None:
        raise BadRequestError("is missing", field=f"{path}.{name}", datum=index)
    if value.ndim != 1 or not len(value) or value.dtype != np.int64:
        raise BadRequestError(
            f"is {value.dtype} {value.shape}; it must be integers (T,), at least one",
            field=f"{path}.{name}",
            datum=index,
        )
    return value.astype(np.int64, copy=False)


def _mask(datum: Datum, length: int, path: str, index: int) -> Int64Array:
    mask, where = _integers(datum, "token_ar_mask", path, index), f"{path}.token_ar_mask"
    if len(mask) != length:
        raise BadRequestError(f"has length {len(mask)}; there are {length} target_tokens", field=where, datum=index)
    if not np.isin(mask, (0, 1)).all():
        raise BadRequestError("has values other than 0 and 1", field=where, datum=index)
    return mask


def _float_inputs(
    datum: Datum, command: ForwardBackward, targets: Int64Array, path: str, index: int
) -> dict[str, LossInput]:
    """The weights, and what a policy loss needs; log-probabilities and advantages come together."""
    given = {name for name in POLICY_INPUTS if name in datum.loss_inputs}
    required = set(LOSS_SPECS[command.loss_fn].required) or (set(POLICY_INPUTS) if given else set())
    for name in sorted(required - given):
        raise BadRequestError("is missing", field=f"{path}.{name}", datum=index)
    checked: dict[str, LossInput] = {}
    for name in ("weights", *sorted(given)):
        if (value := datum.loss_inputs.get(name)) is not None:
            checked[name] = check_numbers(f"{path}.{name}", index, name, value, targets.shape)
    if command.is_mean and (checked.get("weights", np.zeros(0)) < 0).any():
        raise BadRequestError("has values below 0, of which there is no mean", field=f"{path}.weights", datum=index)
    return checked if not command.is_mean else {name: value for name, value in checked.items() if name == "weights"}


def _check_state(state: LossInput | None, where: str, index: int) -> None:
    """The robot's state reaches the network as text of the prefix; here it is only looked at."""
    if state is not None and (state.ndim != 1 or not np.isfinite(state).all()):
        raise BadRequestError(f"is {state.shape}; it must be a finite vector", field=where, datum=index)


def _normalised(datum: Datum, count: int) -> Datum:
    """Weights whose sum of terms is this datum's share of the mean; those that are all 0 stay so."""
    weights = datum.loss_inputs["weights"].astype(np.float64)
    scaled: FloatArray = (weights / ((weights.sum() or 1.0) * count)).astype(np.float32)
    return replace(datum, loss_inputs={**datum.loss_inputs, "weights": scaled})
