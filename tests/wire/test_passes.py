"""forward_backward on the wire, with the official SDK's own encoder and decoder at the other end."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import tinker
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tinker.proto import tinker_public_pb2 as sdk_pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output
from tinker.types import ForwardBackwardInput, ForwardBackwardRequest

from mint.errors import BadRequestError, MintError, TooLargeError
from mint.wire import messages_pb2 as pb
from mint.wire.chunks import ImageChunk
from mint.wire.numbering import numbering
from mint.wire.passes import (
    JSON,
    PROTOBUF,
    PassRequest,
    decode_pass,
    decompress,
    encode_pass_output,
    pass_output_as_json,
)


def sdk_request(
    data: list[tinker.Datum], forward_only: bool = False, seq_id: int = 3, **config: float | str
) -> ForwardBackwardRequest:
    content = ForwardBackwardInput(data=data, loss_fn="cross_entropy", loss_fn_config=config or None)
    return ForwardBackwardRequest(forward_backward_input=content, model_id="s:train:0", seq_id=seq_id)


def datum(tokens: list[int], **inputs: Any) -> tinker.Datum:
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def decode_sdk(data: list[tinker.Datum], **config: float | str) -> PassRequest:
    return decode_pass(forward_backward_request_to_proto(sdk_request(data, **config)).SerializeToString(), PROTOBUF)


def as_json(name: str = "forward_backward_input", **fields: Any) -> bytes:
    chunk = {"tokens": [5, 6]}
    first = {
        "model_input": {"chunks": [chunk]},
        "loss_fn_inputs": {"target_tokens": {"data": [6, 7], "dtype": "int64"}},
    }
    content = {"data": [first], "loss_fn": "cross_entropy", **fields.pop("content", {})}
    return json.dumps({name: content, "model_id": "s:train:0", "seq_id": 3, **fields}).encode()


# ---------------------------------------------------------------- what the SDK sends


def test_a_request_of_the_sdk() -> None:
    request = decode_sdk(
        [datum([1, 2, 3], target_tokens=[2, 3, 4], weights=[0.0, 1.0, 0.5]), datum([9], target_tokens=[7])],
        clip_low_threshold=0.5,
        loss_id="text",
    )
    assert (request.model_id, request.seq_id, request.loss_fn) == ("s:train:0", 3, "cross_entropy")
    assert request.loss_config == {"clip_low_threshold": 0.5, "loss_id": "text"}
    assert not request.forward_only
    first, second = request.data
    assert first.model_input.text().dtype == np.int32
    assert first.model_input.text().tolist() == [1, 2, 3]
    assert {name: value.dtype for name, value in first.loss_inputs.items()} == {
        "target_tokens": np.int64,
        "weights": np.float32,
    }
    np.testing.assert_array_equal(first.loss_inputs["weights"], np.float32([0, 1, 0.5]))
    assert second.loss_inputs["target_tokens"].tolist() == [7]


def test_chunks_of_a_prompt_are_joined() -> None:
    chunks = [tinker.EncodedTextChunk(tokens=[1, 2]), tinker.EncodedTextChunk(tokens=[3])]
    (only,) = decode_sdk([tinker.Datum(model_input=tinker.ModelInput(chunks=chunks), loss_fn_inputs={})]).data
    assert only.model_input.text().tolist() == [1, 2, 3]


def test_soft_targets_of_the_sdk_dense_and_sparse() -> None:
    import torch

    targets = torch.zeros(10, 20, dtype=torch.int64)
    targets[4, 7] = 11
    weights = torch.arange(6.0).view(3, 2)
    sparse, dense = (
        tinker.TensorData.from_torch_sparse(targets),
        tinker.TensorData.from_torch_sparse(weights),
    )
    assert sparse.sparse_crow_indices is not None
    assert dense.sparse_crow_indices is None
    first, second = decode_sdk(
        [datum(list(range(10)), target_tokens=sparse), datum([1, 2, 3], weights=dense)],
    ).data
    np.testing.assert_array_equal(first.loss_inputs["target_tokens"], targets.numpy())
    np.testing.assert_array_equal(second.loss_inputs["weights"], weights.numpy())


def test_sparse_tensors_blow_a_request_up_to_the_limit_only() -> None:
    width = (1 << 24) // 2
    sparse = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[2, width])
    sparse.sparse_csr.crow_indices = np.zeros(3, "<i8").tobytes()
    one = pb.Datum(loss_fn_inputs={"weights": sparse})
    one.model_input.add().encoded_text.tokens = np.array([1, 2], "<i4").tobytes()
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1, data=[one] * 1000)
    decoded = decode_pass(message.SerializeToString(), PROTOBUF).data
    for _ in range(4):
        assert next(decoded).loss_inputs["weights"].shape == (2, width)
    with pytest.raises(BadRequestError, match=str(1 << 26)) as caught:
        next(decoded)
    assert (caught.value.field, caught.value.datum) == ("data[4].loss_fn_inputs", 4)


def test_old_numeric_settings_are_read_and_new_ones_win() -> None:
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn_config={"a": 1.0, "b": 2.0})
    message.loss_fn_config_v2["b"].number = 3.0
    assert decode_pass(message.SerializeToString(), PROTOBUF).loss_config == {"a": 1.0, "b": 3.0}


IMAGE = {"type": "image", "data": base64.b64encode(b"\x89PNG").decode(), "format": "png", "expected_tokens": 7}
SEEING = {"model_input": {"chunks": [{"tokens": [1]}, IMAGE]}, "loss_fn_inputs": {}}


def test_images_are_read() -> None:
    image = tinker.types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=7)
    prompt = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1]), image])
    new = decode_sdk([tinker.Datum(model_input=prompt, loss_fn_inputs={})])
    old = decode_pass(as_json(content={"data": [SEEING]}), JSON)
    for (seeing,) in (new.data, old.data):
        assert seeing.model_input.chunks[1] == ImageChunk(b"\x89PNG", "png", 7)
        assert seeing.model_input.num_tokens == 8
        with pytest.raises(BadRequestError, match="text only") as caught:
            seeing.model_input.text()
        assert caught.value.field == f"{seeing.model_input.where}.chunks[1]"


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"data": "a"}, "data"), ({"data": None}, "data"), ({"expected_tokens": 1.5}, "expected_tokens")],
)
def test_damaged_images_are_refused_with_their_place(changes: dict[str, Any], field: str) -> None:
    chunks = [{"tokens": [1]}, IMAGE | changes]
    request = decode_pass(as_json(content={"data": [{"model_input": {"chunks": chunks}}]}), JSON)
    with pytest.raises(BadRequestError) as caught:
        list(request.data)
    assert (caught.value.field, caught.value.datum) == (f"data[0].model_input.chunks[1].{field}", 0)


@pytest.mark.parametrize("seq_id", [0, -1])
def test_operations_are_numbered_from_one(seq_id: int) -> None:
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=seq_id)
    with pytest.raises(BadRequestError, match="seq_id"):
        decode_pass(message.SerializeToString(), PROTOBUF)
    with pytest.raises(BadRequestError, match="seq_id"):
        decode_pass(as_json(seq_id=seq_id), JSON)


def test_our_messages_have_the_fields_of_the_sdks() -> None:
    theirs = {
        message.name: {field.number: (field.name, field.type) for field in message.fields}
        for message in sdk_pb.DESCRIPTOR.message_types_by_name.values()
    }
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        ours = {field.number: (field.name, field.type) for field in message.fields}
        assert ours.items() <= theirs[message.name].items(), message.name
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        assert enum.values_by_number.keys() == sdk_pb.DESCRIPTOR.enum_types_by_name[name].values_by_number.keys()


# ---------------------------------------------------------------- the JSON of older SDKs


def test_json_with_nothing_but_what_the_user_set() -> None:
    request = decode_pass(as_json(content={"loss_fn_config": None}, later_field=1), JSON)
    assert (request.model_id, request.seq_id, request.forward_only) == ("s:train:0", 3, False)
    (only,) = request.data
    assert only.model_input.text().tolist() == [5, 6]
    assert only.loss_inputs["target_tokens"].dtype == np.int64


def test_json_forward() -> None:
    assert decode_pass(as_json("forward_input"), JSON).forward_only


def test_json_sparse_targets() -> None:
    targets = {
        "data": [4, 5],
        "dtype": "int64",
        "shape": [2, 9],
        "sparse_crow_indices": [0, 0, 2],
        "sparse_col_indices": [1, 8],
    }
    (only,) = decode_pass(as_json(content={"data": [json_datum(target_tokens=targets)]}), JSON).data
    expected = np.zeros((2, 9), np.int64)
    expected[1, [1, 8]] = 4, 5
    np.testing.assert_array_equal(only.loss_inputs["target_tokens"], expected)


def json_datum(tokens: Any = (5, 6), **inputs: Any) -> dict[str, Any]:
    return {"model_input": {"chunks": [{"tokens": tokens}]}, "loss_fn_inputs": inputs}


SPARSE = {"data": [1, 1], "dtype": "int64", "shape": [2, 2]}
SPARSE |= {"sparse_crow_indices": [0, 1, 2], "sparse_col_indices": [0, 1]}


@pytest.mark.parametrize(
    "tokens", [[], [1.5], ["1"], [None], [True], [1 << 31], [-(1 << 31) - 1], [[1, 2], [3, 4]], [1 << 70], [[1], 2], 7]
)
def test_json_tokens_are_never_guessed(tokens: Any) -> None:
    request = decode_pass(as_json(content={"data": [json_datum(), json_datum(tokens)]}), JSON)
    with pytest.raises(BadRequestError) as caught:
        list(request.data)
    assert (caught.value.field, caught.value.datum) == ("data[1].model_input.chunks[0]", 1)


@pytest.mark.parametrize(
    "tensor",
    [
        {"data": [1.5, 2], "dtype": "int64"},
        {"data": ["1", "2"], "dtype": "float32"},
        {"data": [True, False], "dtype": "float32"},
        {"data": [True, 1], "dtype": "float32"},
        {"data": [1, True], "dtype": "int64"},
        {"data": [[1, 2], [3, False]], "dtype": "int64"},
        {"data": [1 << 63, 1], "dtype": "int64"},
        {"data": [1, 2], "dtype": "float64"},
        {"data": [1, 2], "dtype": "int64", "shape": [3]},
        {"data": [1, 2], "dtype": "int64", "shape": [-1]},
        {"data": [1, 2], "dtype": "int64", "shape": [2.0]},
        {"data": [1, 2], "dtype": "int64", "shape": "2"},
        {"data": [[1], [2, 3]], "dtype": "int64"},
        {"data": {"0": 1}, "dtype": "int64"},
        {"data": [1], "dtype": "int64", "shape": [2, 2], "sparse_crow_indices": [0, 1], "sparse_col_indices": [0]},
        {"data": [1], "dtype": "int64", "shape": [2, 2], "sparse_crow_indices": [0, 1, 1]},
        {**SPARSE, "data": [[1], [1]]},
        {**SPARSE, "sparse_crow_indices": [[0], [1], [2]]},
        {**SPARSE, "sparse_crow_indices": [[0, 1, 2]]},
        {**SPARSE, "sparse_col_indices": [[0], [1]]},
        {**SPARSE, "sparse_col_indices": [0, True]},
        [1, 2],
        None,
    ],
)
def test_json_tensors_are_never_guessed(tensor: Any) -> None:
    request = decode_pass(as_json(content={"data": [json_datum(target_tokens=tensor)]}), JSON)
    with pytest.raises(BadRequestError) as caught:
        list(request.data)
    assert caught.value.datum == 0
    assert caught.value.field is not None
    assert caught.value.field.startswith("data[0].loss_fn_inputs.target_tokens")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        (b"[]", "body"),
        (b'{"a": "\\ud800"}', "body"),
        (b'{"a": {"\\udfff": 1}}', "body"),
        ("{}".encode("utf-16"), "body"),
        (b"{}", "forward_backward_input"),
        (as_json(forward_input={}), "forward_input"),
        (as_json(content={"data": None}), "forward_backward_input.data"),
        (as_json(content={"loss_fn_config": {"a": True}}), "forward_backward_input.loss_fn_config.a"),
        (as_json(content={"loss_fn_config": {"a": 10**400}}), "forward_backward_input.loss_fn_config.a"),
        (as_json(seq_id="3"), "seq_id"),
        (as_json(seq_id=1 << 63), "seq_id"),
    ],
)
def test_json_errors_name_the_field(body: bytes, field: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode_pass(body, JSON)
    assert caught.value.field == field


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(BadRequestError, match="Content-Type"):
        decode_pass(b"{}", content_type)


# ---------------------------------------------------------------- damage


VALID = forward_backward_request_to_proto(
    sdk_request([datum([1, 2, 3], target_tokens=[2, 3, 4], weights=[1.0, 0.5, 0.25])])
).SerializeToString()


@given(st.data())
def test_damaged_bytes_give_nothing_but_refusals(data: st.DataObject) -> None:
    body = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    for content_type in (PROTOBUF, JSON):
        numbering(cut)
        with suppress(BadRequestError):
            list(decode_pass(cut, content_type).data)


# surrogates too: JSON can say them
TEXT = st.text(st.characters(exclude_categories=()))


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | TEXT, st.lists))
def test_any_json_in_any_place_gives_nothing_but_refusals(value: Any) -> None:
    bodies = [
        as_json(content={"data": value}),
        as_json(content={"data": [value]}),
        as_json(content={"data": [{"model_input": value}]}),
        as_json(content={"data": [json_datum(value)]}),
        as_json(content={"data": [json_datum(weights=value)]}),
        as_json(content={"data": [json_datum(weights={"data": value, "dtype": "float32"})]}),
        as_json(content={"data": [json_datum(weights={"data": [1], "dtype": "int64", "shape": value})]}),
        *(as_json(content={"data": [json_datum(weights={**SPARSE, name: value})]}) for name in SPARSE),
        as_json(content={"loss_fn_config": value}),
        as_json(seq_id=value),
    ]
    for body in bodies:
        with suppress(BadRequestError):
            list(decode_pass(body, JSON).data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_body_that_is_not_taken_still_tells_its_number(encoding: str) -> None:
    assert numbering(VALID) == ("s:train:0", 3)
    for other in ('"path": 7', '"a": "\\ud800"', f'"a": {"[" * 500}{"]" * 500}'):
        assert numbering(f'{{"model_id": "m", "seq_id": 4, {other}}}'.encode(encoding)) == ("m", 4)
    for hopeless in ('{"model_id": "m"}', '{"model_id": "\\ud800", "seq_id": 4}', "{", "[]", "[" * 100_000):
        assert numbering(hopeless.encode(encoding)) is None
    assert numbering(b"\xff") is None


# ---------------------------------------------------------------- compression


def test_zstd_as_the_sdk_compresses() -> None:
    assert decompress(zstandard.compress(VALID), "zstd", len(VALID)) == VALID
    assert decompress(VALID, None, 0) == decompress(VALID, "identity", 0) == VALID


def test_zstd_without_a_size_in_its_header() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    assert decompress(packer.compress(VALID) + packer.flush(), "zstd", len(VALID)) == VALID


def test_a_zstd_bomb_is_stopped_at_the_limit() -> None:
    bomb = zstandard.compress(bytes(1 << 27))
    assert len(bomb) < 1 << 15
    with pytest.raises(TooLargeError, match="1000 bytes"):
        decompress(bomb, "zstd", 1000)


def test_a_cut_frame_is_no_shorter_request() -> None:
    frame = zstandard.compress(VALID)
    for damaged in (frame[:-3], frame + b"x", b"", frame[:4], b"plain", frame + frame):
        with pytest.raises(BadRequestError, match="zstd"):
            decompress(damaged, "zstd", 1 << 20)


def test_other_encodings_are_refused() -> None:
    with pytest.raises(BadRequestError, match="gzip"):
        decompress(b"", "gzip", 10)


# ---------------------------------------------------------------- what the SDK reads


def outputs() -> tuple[list[np.ndarray], dict[str, float]]:
    logprobs = [np.array([-1.5, -0.25], np.float32), np.array([], np.float32), np.array([-3.0], np.float32)]
    return logprobs, {"loss:sum": 1.25, "num_tokens:sum": 3.0}


def test_the_sdk_reads_our_results() -> None:
    logprobs, metrics = outputs()
    result = deserialize_forward_backward_output(encode_pass_output(logprobs, metrics))
    assert result.loss_fn_output_type == "ArrayRecord"
    assert result.metrics == metrics
    assert len(result.loss_fn_outputs) == 3
    for output, expected in zip(result.loss_fn_outputs, logprobs, strict=True):
        np.testing.assert_array_equal(output["logprobs"].to_numpy(), expected)


def test_the_sdk_reads_several_log_probabilities_for_each_position() -> None:
    shapes = [(3,), (2,), (2, 3), (4, 3), (1, 1), (5, 2), (4,)]
    logprobs = [np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes]
    body = encode_pass_output(logprobs, {})
    for output, expected in zip(deserialize_forward_backward_output(body).loss_fn_outputs, logprobs, strict=True):
        np.testing.assert_array_equal(output["logprobs"].to_numpy(), expected)
    for output, expected in zip(pass_output_as_json(body)["loss_fn_outputs"], logprobs, strict=True):
        values = {"data": expected.ravel().tolist(), "dtype": "float32", "shape": list(expected.shape)}
        assert output["logprobs"] == values


def test_results_as_json_for_older_sdks() -> None:
    logprobs, metrics = outputs()
    answer = pass_output_as_json(encode_pass_output(logprobs, {**metrics, "loss:mean": float("nan")}))
    assert json.loads(json.dumps(answer, allow_nan=False)) == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [
            {"logprobs": {"data": [-1.5, -0.25], "dtype": "float32", "shape": [2]}},
            {"logprobs": {"data": [], "dtype": "float32", "shape": [0]}},
            {"logprobs": {"data": [-3.0], "dtype": "float32", "shape": [1]}},
        ],
        "metrics": metrics,
    }


def test_errors_cross_a_process_border() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BadRequestError("is wrong", field="data[2].x", datum=2)))
    assert isinstance(error, MintError)
    assert (str(error), error.field, error.datum, error.status) == ("data[2].x: is wrong", "data[2].x", 2, 400)
