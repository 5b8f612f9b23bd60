"""Constraints over the tokenizer of mint/tiny."""

from __future__ import annotations

import json
from typing import Any

from mint.engine.constraints import ConstraintCompiler
from mint.engine.core import Constraint
from mint.models.loading import load_tokenizer
from mint.models.token_bytes import token_bytes
from mint.tiny import model_path

TINY = load_tokenizer(str(model_path()))
VOCAB = 2077
"""More than the tokenizer's 2048, and no multiple of 8."""
ENDS = (0, 2)
TEXTS = token_bytes(TINY, VOCAB)
COMPILER = ConstraintCompiler(TINY, VOCAB, ENDS)


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def regex(text: str) -> Constraint:
    return Constraint("regex", text)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "ü", 'quo"te', None]}, "maxItems": 3},
        "kind": {"$ref": "#/$defs/kind"},
        "when": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
    "$defs": {"kind": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}]}},
}
