"""Requests to robot policies: MinT's own second generation of training steps, and acting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.errors import BadRequestError
from mint.wire.chunks import ModelInput, input_from_json
from mint.wire.distillation import vector
from mint.wire.documents import list_at, number_at, object_at, run_named, sequence_number
from mint.wire.passes import PassDatum, PassRequest, read_json
from mint.wire.tensors import Array

SUPERVISION = {
    "target_tokens": "int64",
    "token_ar_mask": "int64",
    "weights": "float32",
    "logprobs": "float32",
    "advantages": "float32",
}
"""The fields of a datum's supervision, each TensorData or a plain list."""

MAX_SEED = 1 << 63


@dataclass(frozen=True)
class ActRequest:
    """What to do in each of some places. `where` has one field for each observation.

    Attributes:
        temperature: 0 is greedy.
        max_tokens: of one answer.
    """

    action_session_id: str
    seq_id: int | None
    observations: tuple[ModelInput, ...]
    temperature: float
    seed: int | None
    max_tokens: int | None


def act_from_json(body: bytes, content_type: str, *, batch: bool) -> ActRequest:
    """`{observation: {model_input, state?}, seq_id?, temperature?, seed?, max_tokens?}`, or with `observations`.

    `action_session_id` is that of the path.

    Raises:
        BadRequestError: it is not that.
    """
    document = read_json(body, content_type)
    if batch:
        values = [
            (value, f"observations[{i}]")
            for i, value in enumerate(list_at(document.get("observations"), "observations"))
        ]
    else:
        values = [(document.get("observation"), "observation")]
    return ActRequest(
        action_session_id=str(document.get("action_session_id")),
        seq_id=_whole(document, "seq_id", 0),
        observations=tuple(_observation(value, where) for value, where in values),
        temperature=_temperature(document.get("temperature")),
        seed=_whole(document, "seed", 0),
        max_tokens=_whole(document, "max_tokens", 1),
    )


def _observation(value: object, where: str) -> ModelInput:
    document = object_at(value, where)
    _state(document, where)
    return input_from_json(document.get("model_input"), f"{where}.model_input")


def _state(observation: Mapping[str, Any], where: str) -> dict[str, Array]:
    """The robot's state, if it is told: text of the prefix has it, so that it is only looked at."""
    if observation.get("state") is None:
        return {}
    state = vector(observation["state"], "float32", f"{where}.state")
    if state.ndim != 1 or not np.isfinite(state).all():
        raise BadRequestError(f"is {state.shape}; it must be a finite vector", field=f"{where}.state")
    return {"state": state}


def _temperature(value: object) -> float:
    temperature = 0.0 if value is None else number_at(value, "temperature")
    if not 0 <= temperature < math.inf:
        raise BadRequestError(f"is {temperature}; it must be finite and 0 or more", field="temperature")
    return temperature


def _whole(document: Mapping[str, Any], name: str, least: int) -> int | None:
    value = document.get(name)
    if value is not None and not (type(value) is int and least <= value < MAX_SEED):
        raise BadRequestError(f"must be a whole number from {least} on", field=name)
    return value


def vla_step_from_json(document: dict[str, Any]) -> PassRequest:
    """The pass of `{model_id, loss_fn, loss_fn_config?, data: [{observation, supervision}], seq_id}`.

    An observation is `{model_input, state?}`; supervision has the fields of `SUPERVISION`.

    Raises:
        BadRequestError: it is not that.
    """
    config = object_at(document.get("loss_fn_config") or {}, "loss_fn_config")
    return PassRequest(
        model_id=run_named(document),
        seq_id=sequence_number(document) if document.get("seq_id") is not None else None,
        data=_supervised(list_at(document.get("data"), "data")),
        loss_fn=str(document.get("loss_fn")),
        loss_config={name: number_at(value, f"loss_fn_config.{name}") for name, value in config.items()},
        forward_only=False,
    )


def _supervised(data: Sequence[Any]) -> Iterator[PassDatum]:
    for index, value in enumerate(data):
        where = f"data[{index}]"
        try:
            datum = object_at(value, where)
            observation = object_at(datum.get("observation"), f"{where}.observation")
            supervision = object_at(datum.get("supervision"), f"{where}.supervision")
            model_input = input_from_json(observation.get("model_input"), f"{where}.observation.model_input")
            inputs = _state(observation, f"{where}.observation") | _supervision(supervision, f"{where}.supervision")
        except BadRequestError as error:
            error.datum = index
            raise
        yield PassDatum(model_input, inputs)


def _supervision(supervision: Mapping[str, Any], where: str) -> dict[str, Array]:
    if "actions" in supervision:
        raise BadRequestError(
            "are for flow_matching, which trains pi0.5 and is not served; give the tokens of the actions",
            field=f"{where}.actions",
        )
    present = {name: dtype for name, dtype in SUPERVISION.items() if supervision.get(name) is not None}
    return {name: vector(supervision[name], dtype, f"{where}.{name}") for name, dtype in present.items()}


def acted(
    actions: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int32],
    logprobs: npt.NDArray[np.float32],
    *,
    decode_ok: bool,
) -> dict[str, Any]:
    """The answer to one observation: normalised actions (H, D), and what was sampled, (T,) each."""
    return {
        "actions": {"data": actions.ravel().tolist(), "shape": list(actions.shape), "dtype": "float32"},
        "tokens": tokens.tolist(),
        "logprobs": logprobs.tolist(),
        "decode_ok": decode_ok,
    }
