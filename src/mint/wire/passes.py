"""`forward_backward` and `forward`: protobuf, and for older SDKs JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import zstandard
from google.protobuf.message import DecodeError

from mint.errors import BadRequestError, TooLargeError
from mint.wire import messages_pb2 as pb
from mint.wire.chunks import ModelInput, input_from_json, input_from_protobuf
from mint.wire.documents import (
    list_at,
    number_at,
    object_at,
    read_object,
    run_named,
    sequence_number,
)
from mint.wire.tensors import Array, batched_tensor, decode_json_tensor, decode_tensor, unbatched

T = TypeVar("T")

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
SLICE = 1 << 12
"""Bytes decompressed at once, which bounds what a small body can blow up to before it is stopped."""

MAX_INPUTS = 1 << 26
"""Numbers in all loss inputs of a request; tensors sent as CSR are larger than the bytes that they take."""


@dataclass(frozen=True)
class PassDatum:
    """A model input and the loss inputs by name, as they came."""

    model_input: ModelInput
    loss_inputs: dict[str, Array]


@dataclass(frozen=True)
class PassRequest:
    """A forward_backward, or with `forward_only` a forward.

    `data` decodes as it is read, once: a damaged datum shows only then, when it is known whose request it is.
    """

    model_id: str
    seq_id: int | None
    data: Iterator[PassDatum]
    loss_fn: str
    loss_config: dict[str, float | str]
    forward_only: bool


def decompress(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo `Content-Encoding`, never reading more than `max_bytes` out of it.

    Raises:
        BadRequestError: an encoding other than zstd, or a damaged body.
        TooLargeError: the content is larger than `max_bytes`.
    """
    if not encoding or encoding == "identity":
        return body
    if encoding != "zstd":
        raise BadRequestError(f"is {encoding!r}; zstd is accepted", field="Content-Encoding")
    try:
        frame = zstandard.ZstdDecompressor().decompressobj()
        content = b"".join(_bounded(map(frame.decompress, _slices(body)), max_bytes))
    except zstandard.ZstdError as error:
        raise BadRequestError(f"is no zstd frame: {error}", field="body") from None
    if not frame.eof or frame.unused_data:
        raise BadRequestError("is not one whole zstd frame", field="body")
    return content


def _slices(body: bytes) -> Iterator[bytes]:
    return (body[start : start + SLICE] for start in range(0, len(body), SLICE))


def _bounded(pieces: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError(f"decompresses to more than {max_bytes} bytes", field="body")
        yield piece


def decode_pass(body: bytes, content_type: str) -> PassRequest:
    """Read a request body.

    Raises:
        BadRequestError: it is not what its content type says, or a tensor is inconsistent.
    """
    if content_type == PROTOBUF:
        return _from_protobuf(body)
    return pass_from_json(read_json(body, content_type, PROTOBUF))


def read_json(body: bytes, content_type: str, *others: str) -> dict[str, Any]:
    """A body that must be a JSON object, where the caller has read what comes as one of `others`.

    Raises:
        BadRequestError: it is none, or is said to be something else.
    """
    if content_type != JSON:
        accepted = " and ".join((*others, JSON))
        raise BadRequestError(f"is {content_type!r}; accepted: {accepted}", field="Content-Type")
    return read_object(body)


def _from_protobuf(body: bytes) -> PassRequest:
    try:
        message = pb.ForwardBackwardRequest.FromString(body)
    except DecodeError as error:
        raise BadRequestError(f"is no ForwardBackwardRequest: {error}", field="body") from None
    if message.seq_id < 1:
        raise BadRequestError("must be a whole number from 1 on", field="seq_id")
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for name, value in message.loss_fn_config_v2.items():
        config[name] = value.text if value.WhichOneof("value") == "text" else value.number
    return PassRequest(
        model_id=message.model_id,
        seq_id=message.seq_id,
        data=_decode_all(_datum_from_protobuf, message.data),
        loss_fn=message.loss_fn,
        loss_config=config,
        forward_only=message.forward_only,
    )


def _decode_all(decode: Callable[[T, str], PassDatum], data: Iterable[T]) -> Iterator[PassDatum]:
    """Decode datum after datum; an error tells whose it is."""
    elements = 0
    for index, datum in enumerate(data):
        where = f"data[{index}]"
        try:
            decoded = decode(datum, where)
        except BadRequestError as error:
            error.datum = index
            raise
        elements += sum(array.size for array in decoded.loss_inputs.values())
        if elements > MAX_INPUTS:
            raise BadRequestError(
                f"brings the loss inputs of the request to {elements} numbers; at most {MAX_INPUTS} are read",
                field=f"{where}.loss_fn_inputs",
                datum=index,
            )
        yield decoded


def _datum_from_protobuf(message: pb.Datum, where: str) -> PassDatum:
    model_input = input_from_protobuf(message.model_input, f"{where}.model_input")
    inputs = {
        name: decode_tensor(tensor, f"{where}.loss_fn_inputs.{name}", rows=model_input.num_tokens)
        for name, tensor in message.loss_fn_inputs.items()
    }
    return PassDatum(model_input, inputs)


def pass_from_json(document: dict[str, Any]) -> PassRequest:
    """`{forward_backward_input | forward_input: {data, loss_fn, loss_fn_config}, model_id, seq_id}`.

    Raises:
        BadRequestError: it is not that.
    """
    forward_only = "forward_input" in document
    if forward_only and "forward_backward_input" in document:
        raise BadRequestError("comes with forward_backward_input; a request has one of them", field="forward_input")
    name = "forward_input" if forward_only else "forward_backward_input"
    content = object_at(document.get(name), name)
    data = list_at(content.get("data"), f"{name}.data")
    config = {
        key: value if isinstance(value, str) else number_at(value, f"{name}.loss_fn_config.{key}")
        for key, value in object_at(content.get("loss_fn_config") or {}, f"{name}.loss_fn_config").items()
    }
    return PassRequest(
        model_id=run_named(document),
        seq_id=sequence_number(document),
        data=_decode_all(_datum_from_json, data),
        loss_fn=str(content.get("loss_fn")),
        loss_config=config,
        forward_only=forward_only,
    )


def _datum_from_json(value: object, where: str) -> PassDatum:
    datum = object_at(value, where)
    model_input = input_from_json(datum.get("model_input"), f"{where}.model_input")
    inputs = {
        name: decode_json_tensor(tensor, f"{where}.loss_fn_inputs.{name}", rows=model_input.num_tokens)
        for name, tensor in object_at(datum.get("loss_fn_inputs") or {}, f"{where}.loss_fn_inputs").items()
    }
    return PassDatum(model_input, inputs)


def encode_pass_output(logprobs: Sequence[npt.NDArray[np.float32]], metrics: dict[str, float]) -> bytes:
    """A `ForwardBackwardOutput`: the log-probabilities of each datum's targets, and metrics `name:reduction`.

    A datum's are (N,) or (N, K). A record has one K: where it changes, the next begins.
    """
    groups = [list(group) for _, group in groupby(logprobs, key=lambda array: array.shape[1:])]
    records = [pb.ArrayRecord(num_datums=len(group), fields={"logprobs": batched_tensor(group)}) for group in groups]
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", loss_fn_outputs=records, metrics=metrics)
    return output.SerializeToString()


def pass_output_as_json(body: bytes) -> dict[str, Any]:
    """A stored `ForwardBackwardOutput` as older SDKs read it; JSON has no NaN: null, or no metric at all."""
    output = pb.ForwardBackwardOutput.FromString(body)
    pieces = [piece for record in output.loss_fn_outputs for piece in unbatched(record.fields["logprobs"])]
    return {
        "loss_fn_output_type": output.loss_fn_output_type,
        "loss_fn_outputs": [
            {"logprobs": {"data": finite(piece.ravel().tolist()), "dtype": "float32", "shape": list(piece.shape)}}
            for piece in pieces
        ],
        "metrics": {name: value for name, value in output.metrics.items() if math.isfinite(value)},
    }


def finite(values: Any) -> list[float | None]:
    """NaN and infinities as None."""
    return [value if math.isfinite(value) else None for value in values]
