"""Reverse-KL requests on the wire: read as they are meant, or refused; whatever is read can be checked."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.engine.core import ModelInfo, ReverseKL, ReverseKLDatum
from mint.engine.reverse_kl_spec import check_reverse_kl
from mint.errors import BadRequestError
from mint.wire.distillation import decode_distillation, distillation_output
from mint.wire.passes import JSON

MODEL = ModelInfo("some/model", "", "Some", 50, 10, 10, (2,), 32, 1000)


def tokens(*values: Any) -> dict[str, Any]:
    return {"chunks": [{"tokens": list(values)}]}


def datum(**fields: Any) -> dict[str, Any]:
    return {"student_input": tokens(1, 2), "reference_input": tokens(3, 1, 2), "target_tokens": [2, 4], **fields}


def body(**fields: Any) -> bytes:
    return json.dumps({"model_id": "s:train:0", "seq_id": 3, "data": [datum()], **fields}).encode()


def checked(content: bytes) -> ReverseKL:
    request = decode_distillation(content, JSON)
    data = tuple(ReverseKLDatum(each.student, each.reference, each.targets, each.weights) for each in request.data)
    return check_reverse_kl(ReverseKL(request.model_id, data, None, request.temperature), MODEL)


def test_what_is_left_out() -> None:
    request = decode_distillation(body(), JSON)
    assert (request.model_id, request.seq_id, request.reference_model_path) == ("s:train:0", 3, None)
    assert request.temperature == 1.0
    (only,) = request.data
    assert only.student.dtype == only.reference.dtype == np.int32
    assert only.weights.tolist() == [1.0, 1.0]
    assert decode_distillation(body(temperature=None), JSON).temperature == 1.0


def test_chunks_are_joined_and_tensors_are_as_lists() -> None:
    two = {"chunks": [{"type": "encoded_text", "tokens": [1]}, {"tokens": [2]}]}
    plain = datum(student_input=two, weights=[1, 0.5])
    tensors = datum(
        student_input=two,
        target_tokens={"data": [2, 4], "dtype": "int64", "shape": [2]},
        weights={"data": [1, 0.5], "dtype": "float32"},
    )
    first, second = checked(body(data=[plain, tensors])).data
    assert first.student.tolist() == [1, 2]
    for name in ("student", "reference", "targets", "weights"):
        mine, other = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(mine, other)
        assert mine.dtype == other.dtype


IMAGE = {"type": "image", "data": "aaaa", "format": "png"}


def test_the_index_of_a_damaged_datum() -> None:
    with pytest.raises(BadRequestError, match="text only") as caught:
        list(decode_distillation(body(data=[datum(), datum(student_input={"chunks": [IMAGE]})]), JSON).data)
    assert (caught.value.datum, caught.value.field) == (1, "data[1].student_input.chunks[0]")


@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_the_limits_themselves_are_taken(temperature: float) -> None:
    assert checked(body(temperature=temperature)).temperature == temperature


@pytest.mark.parametrize("count", [1, 2])
def test_there_may_be_as_many_targets_as_the_shorter_input_has_tokens(count: int) -> None:
    (only,) = checked(body(data=[datum(target_tokens=[4] * count)])).data
    assert only.targets.tolist() == [4] * count


def test_an_answer() -> None:
    answer = distillation_output((0.5, -1.0), {"loss:sum": -0.5})
    assert answer["outputs"] == [{"loss": {"data": [loss], "dtype": "float32", "shape": [1]}} for loss in (0.5, -1.0)]
    assert answer["metrics"] == {"loss:sum": -0.5}


# surrogates too: JSON can say them
TEXT = st.text(st.characters(exclude_categories=()))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | TEXT, st.lists))
def test_any_json_in_any_place_gives_nothing_but_refusals(value: Any) -> None:
    fields = ("student_input", "reference_input", "target_tokens", "weights")
    contents = [
        *(body(data=[datum(**{name: value})]) for name in fields),
        *(body(data=[datum(**{name: {"data": value, "dtype": "int64"}})]) for name in fields[2:]),
        body(data=[datum(weights={"data": [1, 1], "dtype": "float32", "shape": value})]),
        body(data=[datum(student_input=tokens(value))]),
        *(body(**{name: value}) for name in ("data", "temperature", "seq_id", "reference_model_path", "model_id")),
        json.dumps(value).encode(),
    ]
    for content in contents:
        with suppress(BadRequestError):
            command = checked(content)
            for each in command.data:
                assert (each.targets.dtype, each.weights.dtype) == (np.int64, np.float32)
                assert each.targets.shape == each.weights.shape
                assert 1 <= len(each.targets) <= min(len(each.student), len(each.reference))
                assert np.isfinite(each.weights).all()
