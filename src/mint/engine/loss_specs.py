"""What each loss takes: its inputs and its settings.

Torch-free, so that a bad request is refused before it is queued. The functions themselves are in
`mint.engine.losses`; a test holds the two tables to the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mint.engine.core import Datum, ForwardBackward, Int32Array, LossInput, ModelInfo
from mint.errors import BadRequestError


@dataclass(frozen=True)
class LossSpec:
    """Inputs a datum must carry beside `target_tokens` and `weights`, and settings with their defaults.

    `not_served` are inputs that would change the loss and are refused; others that it does not know it leaves alone.
    """

    required: tuple[str, ...] = ()
    not_served: tuple[str, ...] = ()
    config: Mapping[str, float] = field(default_factory=dict)


CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
POLICY_INPUTS = ("logprobs", "advantages")

LOSS_SPECS: dict[str, LossSpec] = {
    "cross_entropy": LossSpec(),
    "importance_sampling": LossSpec(required=POLICY_INPUTS),
    "ppo": LossSpec(required=POLICY_INPUTS, not_served=tuple(CLIP), config=CLIP),
}


def check_forward_backward(command: ForwardBackward, model: ModelInfo) -> ForwardBackward:
    """Refuse what cannot be computed; returns the command with defaults filled in.

    `weights` default to 1; inputs that the loss does not use are dropped.

    Raises:
        BadRequestError: naming the datum, the field and the limit.
    """
    spec = LOSS_SPECS.get(command.loss_fn)
    if spec is None:
        raise BadRequestError(f"{command.loss_fn!r} is not served; served are {', '.join(LOSS_SPECS)}", field="loss_fn")
    if not command.data:
        raise BadRequestError("is empty; a pass needs at least one datum", field="data")
    data = tuple(_check_datum(index, datum, spec, model) for index, datum in enumerate(command.data))
    return replace(command, data=data, loss_config=_check_config(command, spec))


def _check_config(command: ForwardBackward, spec: LossSpec) -> dict[str, float]:
    for name, value in command.loss_config.items():
        if name not in spec.config:
            known = ", ".join(spec.config) or "none"
            raise BadRequestError(f"{command.loss_fn} has no setting {name!r}; it has {known}", field="loss_fn_config")
        if not np.isfinite(value):
            raise BadRequestError(f"must be finite, is {value}", field=f"loss_fn_config.{name}")
    return {**spec.config, **command.loss_config}


def _check_datum(index: int, datum: Datum, spec: LossSpec, model: ModelInfo) -> Datum:
    length = len(datum.tokens)
    path = f"data[{index}]"
    if length == 0:
        raise BadRequestError("has no tokens", field=f"{path}.model_input", datum=index)
    if length > model.max_context_length:
        raise BadRequestError(
            f"has {length} tokens; {model.name} takes at most {model.max_context_length}",
            field=f"{path}.model_input",
            datum=index,
        )
    check_token_ids(datum.tokens, model, f"{path}.model_input", index)
    for name in spec.not_served:
        if name in datum.loss_inputs:
            raise BadRequestError(
                "is not served for each token yet; set it in loss_fn_config",
                field=f"{path}.loss_fn_inputs.{name}",
                datum=index,
            )
    inputs: dict[str, LossInput] = {"weights": np.ones(length, np.float32)}
    for name in ("target_tokens", "weights", *spec.required):
        value = datum.loss_inputs.get(name)
        where = f"{path}.loss_fn_inputs.{name}"
        if value is not None:
            inputs[name] = _check_input(where, index, name, value, length)
        elif name != "weights":
            raise BadRequestError("is missing", field=where, datum=index)
    check_token_ids(inputs["target_tokens"], model, f"{path}.loss_fn_inputs.target_tokens", index)
    return Datum(datum.tokens, inputs)


def _check_input(where: str, index: int, name: str, value: LossInput, length: int) -> LossInput:
    if value.shape != (length,):
        raise BadRequestError(
            f"has shape {tuple(value.shape)}; model_input has {length} tokens, so it must be ({length},)",
            field=where,
            datum=index,
        )
    if name == "target_tokens":
        if value.dtype != np.int64:
            raise BadRequestError(f"must be integers, is {value.dtype}", field=where, datum=index)
        return value
    finite = np.isfinite(value)
    if not finite.all():
        position = int(np.argmin(finite))
        raise BadRequestError(f"is {value[position]} at position {position}", field=where, datum=index)
    return value.astype(np.float32, copy=False)


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
        position = int(np.argmax(outside))
        raise BadRequestError(
            f"token {int(tokens[position])} at position {position} is outside the vocabulary of "
            f"{model.name}, 0 to {model.vocab_size - 1}",
            field=where,
            datum=datum,
        )
