"""JSON bodies that are read by hand, field by field: those with tensors, which a model of pydantic would copy."""

from __future__ import annotations

import json
from typing import Any

from mint.errors import BadRequestError


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
