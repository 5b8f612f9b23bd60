"""JSON bodies that are read by hand, field by field: those with tensors, which a model of pydantic would copy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from mint.errors import BadRequestError
from mint.wire.tensors import numbers


def read_object(body: bytes) -> dict[str, Any]:
    """A body as a JSON object, in UTF-8, all of whose text is Unicode.

    Raises:
        BadRequestError: it is none.
    """
    try:
        text = body.decode()
        document = parse(text)
        if "\\ud" in text or "\\uD" in text:  # half a pair of surrogates is valid JSON, and nothing can write it again
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequestError("has text that is no Unicode: a lone surrogate", field="body") from None
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"is no JSON in UTF-8: {error}", field="body") from None
    return object_at(document, "body")


def parse(text: str | bytes) -> Any:
    """JSON as `json.loads` reads it, with pauses: it holds the interpreter's lock from one call of ours to the next."""
    return json.loads(text, object_hook=lambda document: document)


def object_at(value: object, where: str) -> dict[str, Any]:
    """The object at a place of a document.

    Raises:
        BadRequestError: something else is there; `where` is the field it names.
    """
    if not isinstance(value, dict):
        raise BadRequestError("must be an object", field=where)
    return value


def list_at(value: object, where: str) -> list[Any]:
    """The list at a place; see `object_at`."""
    if not isinstance(value, list):
        raise BadRequestError("must be a list", field=where)
    return value


def number_at(value: object, where: str) -> float:
    """The number at a place; see `object_at`. True is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadRequestError("must be a number", field=where)
    try:
        return float(value)
    except OverflowError:
        raise BadRequestError("is too large", field=where) from None


def is_text(value: str) -> bool:
    """Whether this can be stored as text: JSON can spell halves of surrogate pairs, which are no characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def run_named(document: dict[str, Any]) -> str:
    """The `model_id` of an operation; see `object_at`."""
    model_id = document.get("model_id")
    if not isinstance(model_id, str):
        raise BadRequestError("must be text", field="model_id")
    return model_id


def sequence_number(document: dict[str, Any]) -> int:
    """The `seq_id` of an operation; 0 is the run's creation.

    Raises:
        BadRequestError: there is none from 1 on.
    """
    seq_id = document.get("seq_id")
    if not isinstance(seq_id, int) or isinstance(seq_id, bool) or not 1 <= seq_id < 1 << 63:
        raise BadRequestError("must be a whole number from 1 on", field="seq_id")
    return seq_id


def model_input_tokens(value: object, where: str) -> npt.NDArray[np.int32]:
    """The tokens of the SDK's ModelInput, int32 (N,): those of all its chunks.

    Raises:
        BadRequestError: it is none, or has another chunk than text.
    """
    chunks = list_at(object_at(value, where).get("chunks"), f"{where}.chunks")
    pieces = [
        chunk_tokens(object_at(chunk, path), path)
        for place, chunk in enumerate(chunks)
        for path in [f"{where}.chunks[{place}]"]
    ]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32)


def chunk_tokens(chunk: dict[str, Any], where: str) -> npt.NDArray[np.int32]:
    """The tokens of a JSON chunk.

    Raises:
        BadRequestError: it is no text chunk, or is empty, or an id does not fit 32 bits.
    """
    tokens = chunk.get("tokens")
    if chunk.get("type") not in (None, "encoded_text") or not isinstance(tokens, list):
        raise BadRequestError(f"is {chunk.get('type') or sorted(chunk)}; this server takes text only", field=where)
    array = numbers(tokens, np.dtype(np.int64), where)
    if array.ndim != 1 or not len(array) or array.min() < -(1 << 31) or array.max() >= 1 << 31:
        raise BadRequestError("must have tokens, at least one, each a 32-bit number", field=where)
    return array.astype(np.int32)
