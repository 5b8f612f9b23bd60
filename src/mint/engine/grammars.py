"""What a sample must match, as a grammar: checks a JSON schema or regular expression and bounds what it costs.

Knows no tokenizer and no torch, so that the server can refuse a constraint before it is journaled. What shows only with
a vocabulary, `engine/constraints.py` refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits

from mint.engine.core import Constraint
from mint.errors import BadRequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_TEXT_BYTES = 64 << 10

MAX_TRIALS, TRIAL_SECONDS = 256, 0.5
"""Parts of a schema that are compiled to find the one at fault, and how long that may go on."""

NUM_CHECKED = 64
"""Constraints that were found to be good and are remembered."""

NAMES = {"json_schema": "JSON schema", "regex": "regular expression"}

JSON_OPTIONS: JsonCompileOptions = {
    "lenient": False,  # a keyword that is not enforced is refused, not ignored
    # enough to indent deep objects, and an end to the blank lines that small models like to go on with
    "whitespace_pattern": r"[ \n\t]{1,40}",
}

DEFINITIONS = ("$defs", "definitions")
SCHEMA_MAPS = (*DEFINITIONS, "properties", "patternProperties")
SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMA_VALUES = ("items", "additionalProperties")
"""Keywords of JSON Schema under which there are further schemas."""


@cache
def parser_limits() -> LLParserLimits:
    """How much work the library may do for a grammar.

    Less than it allows by itself, so that to compile or to mask takes a fraction of a second at worst; but more items
    in a row, of which each optional property of an object takes four.
    """
    return LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=100_000,
        max_lexer_states=50_000,
        max_items_in_row=10_000,
        verbose_errors=False,
    )


@lru_cache(NUM_CHECKED)
def check(constraint: Constraint) -> None:
    """See that a constraint can be enforced, as far as that shows without a tokenizer.

    Raises:
        BadRequestError: as `grammar`; or it asks for what is not supported, or contradicts itself. Of a schema the
            message has the place, as a JSON pointer; of a large one that may be a part around it, or the whole.
    """
    fault = _fault(grammar(constraint))
    if fault and constraint.kind == "regex":
        raise BadRequestError(f"the regular expression cannot be enforced: {fault}", field=constraint.field)
    if fault:
        place, fault = _narrow(json.loads(constraint.text), fault)
        raise BadRequestError(f"the JSON schema cannot be enforced, at {place}: {fault}", field=constraint.field)


def grammar(constraint: Constraint) -> str:
    """The library's form of a constraint; most of what may be wrong with it is seen only when that is compiled.

    Raises:
        BadRequestError: the text is too long, or no JSON object.
    """
    size = len(constraint.text.encode(errors="surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise BadRequestError(f"{size} bytes; at most {MAX_TEXT_BYTES} are compiled", field=constraint.field)
    try:
        constraint.text.encode()
        if constraint.kind == "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        return _schema_grammar(constraint.text)
    except ValueError as error:
        raise BadRequestError(f"the {NAMES[constraint.kind]} cannot be read: {error}", field=constraint.field) from None


def readable(message: str) -> str:
    """A message of the library in one line, without the grammar that the text was put into."""
    message = message.rpartition("\nerror: ")[2].partition("\n   1 |")[0].replace("<non-verbose/>", "")
    return " ".join(message.split())[:300]


def _schema_grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)


def _fault(compiled: str) -> str | None:
    """What is wrong with a grammar; None if nothing is."""
    is_error, messages = LLMatcher.validate_grammar_with_warnings(compiled, limits=parser_limits())
    return readable(messages[0]) if is_error else None


def _narrow(schema: dict[str, Any], fault: str) -> tuple[str, str]:
    """The innermost part of a schema that is found to be at fault by itself: its JSON pointer, and what is wrong."""
    root = {key: schema[key] for key in DEFINITIONS if key in schema}
    place, trials, until = "#", 0, monotonic() + TRIAL_SECONDS
    while True:
        for step, inner in _subschemas(schema):
            trials += 1
            if trials > MAX_TRIALS or monotonic() > until:
                return place[:300], fault
            if found := _fault(_schema_grammar(json.dumps({**root, **inner}))):
                schema, place, fault = inner, f"{place}/{step}", found
                break
        else:
            return place[:300], fault


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, Any]] = []
    for key in SCHEMA_MAPS:
        entries = schema.get(key)
        if isinstance(entries, dict):
            found += [(f"{key}/{name.replace('~', '~0').replace('/', '~1')}", entry) for name, entry in entries.items()]
    for key in SCHEMA_LISTS:
        entries = schema.get(key)
        if isinstance(entries, list):
            found += [(f"{key}/{place}", entry) for place, entry in enumerate(entries)]
    found += [(key, schema.get(key)) for key in SCHEMA_VALUES]
    return ((step, inner) for step, inner in found if isinstance(inner, dict))
