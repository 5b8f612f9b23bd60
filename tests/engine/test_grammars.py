"""Constraints that cannot be enforced, or would cost too much, are refused by name and place."""

from __future__ import annotations

import contextlib
from time import process_time

import numpy as np
import pytest

from mint.engine.core import Constraint
from mint.engine.grammars import check
from mint.errors import BadRequestError
from tests.engine.constraint_support import COMPILER, ENDS, PERSON, regex, schema

REFUSED = {
    "unclosed group": regex("(ab"),
    "look-around": regex("(?=a)b"),
    "backreferences": regex(r"(a)\1"),
    "surrogates": regex("\ud800"),
    "at most 65536": regex("a" * 70_000),
    "at #/properties/x~1y/anyOf/1: Invalid type": schema(
        {"type": "object", "properties": {"x/y": {"anyOf": [{"type": "null"}, {"type": "intger"}]}}}
    ),
    r'at #/\$defs/a/items: Unimplemented keys: \["not"\]': schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"not": {}}}}}
    ),
    "Unsatisfiable": schema({"type": "integer", "minimum": 3, "maximum": 2}),
    "nothing that this model can write": schema({"$ref": "#"}),
    "does not fetch": schema({"$ref": "https://example.com/schema"}),
    "cannot be read: key must be a string": Constraint("json_schema", "{a}"),
    "object": Constraint("json_schema", "[]"),
    "number out of range": Constraint("json_schema", '{"const": 1e400}'),
    "out of range at line": Constraint("json_schema", '{"not": ' + "1" * 5000 + "}"),
    "recursion limit": Constraint("json_schema", '{"items":' * 2000 + "{}" + "}" * 2000),
}


@pytest.mark.parametrize("reason", [reason for reason in REFUSED if "#/" not in reason])
def test_what_cannot_be_enforced_is_refused(reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason) as caught:
        COMPILER.start(REFUSED[reason])
    assert caught.value.field == "response_format"
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("reason", sorted(REFUSED.keys() - {"nothing that this model can write"}))
def test_most_of_it_is_refused_without_a_tokenizer(reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason):
        check(REFUSED[reason])


def test_what_can_be_enforced_passes_without_a_tokenizer() -> None:
    for constraint in (schema(PERSON), regex("a|b"), regex("")):
        check(constraint)


def test_the_field_is_named_that_has_the_constraint() -> None:
    for refuse in (check, COMPILER.start):
        with pytest.raises(BadRequestError, match="cannot be") as caught:
            refuse(Constraint("json_schema", '{"not": {}}', "guided_json"))
        assert caught.value.field == "guided_json"


def test_looking_for_a_fault_takes_bounded_time() -> None:
    many = {str(i): {} for i in range(2400)}
    started = process_time()
    with pytest.raises(BadRequestError, match="at #: Unimplemented keys"):
        check(schema({"$defs": many, "properties": {**many, "last": {"not": {}}}}))
    with pytest.raises(BadRequestError, match="at #/properties/a: Unimplemented keys"):
        check(schema({"properties": {"a": {"properties": {**many, "last": {"not": {}}}}}}))
    assert process_time() - started < 2


def test_a_fault_is_placed_where_it_is_defined() -> None:
    with pytest.raises(BadRequestError, match=r"at #/\$defs/a"):
        check(schema({"properties": {"b": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"not": {}}}}))


@pytest.mark.parametrize(
    "constraint",
    [
        regex("(a{1000}){1000}"),
        regex("(([a-z]{1,50}){1,50}){1,50}"),
        regex("(x+x+)+y" * 1000),
        regex("[ab]*a[ab]{60}"),
        schema({"type": "string", "pattern": "^(([a-z]{1,50}){1,50}){1,50}$"}),
        schema({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}),
        schema({"enum": [f"value-{i}" for i in range(3500)]}),
        schema({"type": "array", "minItems": 10**6, "items": {"$ref": "#"}}),
    ],
    ids=lambda constraint: constraint.text[:30],
)
def test_hostile_constraints_take_bounded_time(constraint: Constraint) -> None:
    """Each is refused, at the start or on its way, or goes on like any other."""
    started, rng = process_time(), np.random.default_rng(0)
    with contextlib.suppress(BadRequestError):
        state = COMPILER.start(constraint)
        for _ in range(50):
            if state.must_stop:
                break
            tokens = np.flatnonzero(np.unpackbits(state.allowed_bits(), bitorder="little"))
            state.accept(int(rng.choice(tokens[~np.isin(tokens, ENDS)])))
    assert process_time() - started < 3
