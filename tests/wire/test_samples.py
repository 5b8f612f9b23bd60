"""Results of asample, read by the official SDK."""

from __future__ import annotations

import json

import numpy as np
from tinker.proto.response_conv import deserialize_sample_response

from mint.wire.samples import PromptPart, TokenTable, encode_sample, sample_as_json, sampled_sequence

NAN, INF = np.float32("nan"), np.float32("inf")


def table(tokens: list[list[int]], logprobs: list[list[float]]) -> TokenTable:
    return TokenTable(np.array(tokens, np.int32), np.array(logprobs, np.float32))


PROMPT = PromptPart(
    logprobs=np.array([NAN, -0.25, -1.5], np.float32),
    top=table([[-1, -1], [0, 4], [9, -1]], [[-INF, -INF], [-0.25, -2.0], [-0.5, -INF]]),
    alternatives=table([[8, 8], [7, 0]], [[-1.0, -1.0], [-2.0, -3.0]]),
    cache_hit_tokens=2,
)
SEQUENCES = [
    sampled_sequence(
        np.array([5, 2], np.int32),
        np.array([-0.5, -1.5], np.float32),
        "stop",
        table([[5, 6], [2, -1]], [[-0.5, -2.0], [-1.5, -INF]]),
    ),
    sampled_sequence(np.array([7], np.int32), np.array([-2.5], np.float32), "length"),
]


def test_the_sdk_reads_our_samples() -> None:
    result = deserialize_sample_response(encode_sample(SEQUENCES, PROMPT))
    assert [sequence.tokens for sequence in result.sequences] == [[5, 2], [7]]
    assert [sequence.logprobs for sequence in result.sequences] == [[-0.5, -1.5], [-2.5]]
    assert [sequence.stop_reason for sequence in result.sequences] == ["stop", "length"]
    assert [sequence.topk_logprobs for sequence in result.sequences] == [[[(5, -0.5), (6, -2.0)], [(2, -1.5)]], None]
    assert result.prompt_logprobs == [None, -0.25, -1.5]
    assert result.topk_prompt_logprobs == [None, [(0, -0.25), (4, -2.0)], [(9, -0.5)]]
    assert result.prompt_cache_hit_tokens == 2
    assert result.target_prompt_logprobs is None
    alternatives = result.prompt_alt_tokens
    assert alternatives is not None
    assert (alternatives.tokens.dtype, alternatives.tokens.tolist()) == ("int64", [[8, 8], [7, 0]])
    assert (alternatives.logprobs.dtype, alternatives.logprobs.tolist()) == ("float32", [[-1.0, -1.0], [-2.0, -3.0]])


def test_what_was_not_asked_for_is_not_there() -> None:
    body = encode_sample(SEQUENCES[1:], PromptPart())
    result = deserialize_sample_response(body)
    assert (result.prompt_logprobs, result.topk_prompt_logprobs, result.prompt_alt_tokens) == (None, None, None)
    assert result.prompt_cache_hit_tokens == 0
    assert set(sample_as_json(body)) == {"type", "sequences", "prompt_cache_hit_tokens"}


def test_as_json_for_older_sdks() -> None:
    answer = sample_as_json(encode_sample(SEQUENCES, PROMPT))
    assert json.loads(json.dumps(answer, allow_nan=False)) == {
        "type": "sample",
        "sequences": [
            {
                "stop_reason": "stop",
                "tokens": [5, 2],
                "logprobs": [-0.5, -1.5],
                "topk_logprobs": [[[5, -0.5], [6, -2.0]], [[2, -1.5]]],
            },
            {"stop_reason": "length", "tokens": [7], "logprobs": [-2.5]},
        ],
        "prompt_logprobs": [None, -0.25, -1.5],
        "topk_prompt_logprobs": [None, [[0, -0.25], [4, -2.0]], [[9, -0.5]]],
        "prompt_cache_hit_tokens": 2,
        "prompt_alt_tokens": {
            "tokens": {"data": [8, 8, 7, 0], "dtype": "int64", "shape": [2, 2]},
            "logprobs": {"data": [-1.0, -1.0, -2.0, -3.0], "dtype": "float32", "shape": [2, 2]},
        },
    }
