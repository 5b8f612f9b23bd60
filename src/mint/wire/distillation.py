"""`forward_backward_reverse_kl`: MinT's own request, in JSON, and its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.errors import BadRequestError
from mint.wire.chunks import input_from_json
from mint.wire.documents import list_at, number_at, object_at, run_named, sequence_number
from mint.wire.passes import read_json
from mint.wire.tensors import JSON_TYPES, Array, decode_json_tensor, numbers


@dataclass(frozen=True)
class DistillationDatum:
    """`student` int32 (S,), `reference` int32 (R,); `targets` and `weights` as they came, int64 or float32."""

    student: npt.NDArray[np.int32]
    reference: npt.NDArray[np.int32]
    targets: Array
    weights: Array


@dataclass(frozen=True)
class DistillationRequest:
    """`reference_model_path` is a checkpoint's path, or the base model's name, or None for the base model.

    Without a `seq_id` it stands behind all that has come.
    `data` decodes as it is read, once: a damaged datum shows only then, when it is known whose request it is.
    """

    model_id: str
    seq_id: int | None
    reference_model_path: str | None
    data: Iterator[DistillationDatum]
    temperature: float


def decode_distillation(body: bytes, content_type: str) -> DistillationRequest:
    """`{model_id, reference_model_path?, data: [datum], temperature?, seq_id?}`.

    A datum is `{student_input, reference_input, target_tokens, weights?}`: two ModelInputs, and for the others
    TensorData or plain lists. `weights` default to 1, `temperature` to 1.

    Raises:
        BadRequestError: it is not that.
    """
    document = read_json(body, content_type)
    path = document.get("reference_model_path")
    if not isinstance(path, str | None):
        raise BadRequestError("must be text or null", field="reference_model_path")
    temperature = document.get("temperature")
    return DistillationRequest(
        model_id=run_named(document),
        seq_id=sequence_number(document) if document.get("seq_id") is not None else None,
        reference_model_path=path,
        data=_decode_all(list_at(document.get("data"), "data")),
        temperature=1.0 if temperature is None else number_at(temperature, "temperature"),
    )


def _decode_all(data: list[Any]) -> Iterator[DistillationDatum]:
    """Decode datum after datum; an error tells whose it is."""
    for index, datum in enumerate(data):
        try:
            yield _decode(datum, f"data[{index}]")
        except BadRequestError as error:
            error.datum = index
            raise


def _decode(value: object, where: str) -> DistillationDatum:
    datum = object_at(value, where)
    targets = vector(datum.get("target_tokens"), "int64", f"{where}.target_tokens")
    weights = datum.get("weights")
    return DistillationDatum(
        student=input_from_json(datum.get("student_input"), f"{where}.student_input").text(),
        reference=input_from_json(datum.get("reference_input"), f"{where}.reference_input").text(),
        targets=targets,
        weights=np.ones(targets.shape, np.float32)
        if weights is None
        else vector(weights, "float32", f"{where}.weights"),
    )


def vector(value: object, dtype: str, where: str) -> Array:
    """Of a plain list, or of TensorData, which has its own type and cannot be sparse: it has one dimension."""
    if value is None:
        raise BadRequestError("is missing", field=where)
    if isinstance(value, list):
        return numbers(value, JSON_TYPES[dtype], where)
    if isinstance(value, dict) and value.get("sparse_crow_indices") is not None:
        raise BadRequestError("is sparse; it must be a list, or dense", field=where)
    return decode_json_tensor(value, where, rows=0)


def distillation_output(losses: Sequence[float], metrics: dict[str, float]) -> dict[str, Any]:
    """`{outputs: [{loss}], metrics, type}`, an output for each datum; `loss` is TensorData of one number."""
    return {
        "outputs": [{"loss": {"data": [loss], "dtype": "float32", "shape": [1]}} for loss in losses],
        "metrics": metrics,
        "type": "mint_forward_backward_reverse_kl",
    }
