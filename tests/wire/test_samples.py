"""Results of asample, read by the official SDK."""

from __future__ import annotations

import json

import numpy as np
from tinker.proto.response_conv import deserialize_sample_response

from mint.wire.samples import encode_sample, sample_as_json, sampled_sequence

NAN = np.float32("nan")


def test_the_sdk_reads_our_samples() -> None:
    sequences = [
        sampled_sequence(np.array([5, 2], np.int32), np.array([-0.5, -1.5], np.float32), "stop"),
        sampled_sequence(np.array([7], np.int32), np.array([-2.5], np.float32), "length"),
    ]
    result = deserialize_sample_response(encode_sample(sequences, np.array([NAN, -0.25], np.float32)))
    assert [sequence.tokens for sequence in result.sequences] == [[5, 2], [7]]
    assert [sequence.logprobs for sequence in result.sequences] == [[-0.5, -1.5], [-2.5]]
    assert [sequence.stop_reason for sequence in result.sequences] == ["stop", "length"]
    assert result.prompt_logprobs == [None, -0.25]


def test_without_prompt_logprobs() -> None:
    body = encode_sample([sampled_sequence(np.array([7], np.int32), np.array([-2.5], np.float32), "stop")], None)
    assert deserialize_sample_response(body).prompt_logprobs is None
    assert "prompt_logprobs" not in sample_as_json(body)


def test_as_json_for_older_sdks() -> None:
    sequence = sampled_sequence(np.array([7], np.int32), np.array([-2.5], np.float32), "stop")
    answer = sample_as_json(encode_sample([sequence], np.array([NAN, -0.25], np.float32)))
    assert json.loads(json.dumps(answer, allow_nan=False)) == {
        "type": "sample",
        "sequences": [{"stop_reason": "stop", "tokens": [7], "logprobs": [-2.5]}],
        "prompt_logprobs": [None, -0.25],
    }
