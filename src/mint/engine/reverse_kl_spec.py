"""What a reverse-KL pass takes. Torch-free; the pass itself is in `mint.engine.distillation`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mint.engine.core import Int64Array, ModelInfo, ReverseKL, ReverseKLDatum
from mint.engine.loss_specs import check_input_tokens, check_numbers, check_token_ids
from mint.errors import BadRequestError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 1e3
"""Logits of a few hundred, divided by the lowest, still differ by less than one from one float32 to the next."""


def check_reverse_kl(command: ReverseKL, model: ModelInfo) -> ReverseKL:
    """Refuse what cannot be computed; returns the command with its arrays in their types.

    Raises:
        BadRequestError: naming the datum, the field and the limit.
    """
    temperature = command.temperature
    if not math.isfinite(temperature) or not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise BadRequestError(
            f"is {temperature}; it must be from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}", field="temperature"
        )
    if not command.data:
        raise BadRequestError("is empty; a pass needs at least one datum", field="data")
    return replace(command, data=tuple(_check_datum(index, datum, model) for index, datum in enumerate(command.data)))


def _check_datum(index: int, datum: ReverseKLDatum, model: ModelInfo) -> ReverseKLDatum:
    path = f"data[{index}]"
    check_input_tokens(datum.student, model, f"{path}.student_input", index)
    check_input_tokens(datum.reference, model, f"{path}.reference_input", index)
    targets = _check_targets(index, datum, model)
    weights = check_numbers(f"{path}.weights", index, "weights", datum.weights, targets.shape)
    return ReverseKLDatum(datum.student, datum.reference, targets, weights.astype(np.float32, copy=False))


def _check_targets(index: int, datum: ReverseKLDatum, model: ModelInfo) -> Int64Array:
    """The last positions of both inputs predict the targets, so there cannot be more of these than of those."""
    where, targets = f"data[{index}].target_tokens", datum.targets
    room = min(len(datum.student), len(datum.reference))
    if targets.ndim != 1 or not 1 <= len(targets) <= room:
        raise BadRequestError(
            f"has shape {tuple(targets.shape)}; the last N tokens of student_input ({len(datum.student)}) and "
            f"reference_input ({len(datum.reference)}) predict N targets, so it must be (N,) with N from 1 to {room}",
            field=where,
            datum=index,
        )
    if targets.dtype != np.int64:
        raise BadRequestError(f"must be integers, is {targets.dtype}", field=where, datum=index)
    check_token_ids(targets, model, where, index)
    return targets
