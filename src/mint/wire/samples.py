"""Results of `asample`: protobuf, or JSON for older SDKs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mint.wire import messages_pb2 as pb
from mint.wire.passes import finite
from mint.wire.tensors import dense_tensor, tensor_as_json

EMPTY_TOKEN, EMPTY_LOGPROB = 0, -99999.0
"""What the SDK takes for an empty place among the likeliest tokens."""


@dataclass(frozen=True)
class TokenTable:
    """`tokens` int32 (N, k) with `logprobs` float32 (N, k), for each of N positions; −1 and −∞ where there is none."""

    tokens: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class PromptPart:
    """What a response says of its prompt of L tokens; None where it was not asked.

    `logprobs` float32 (L,), NaN where there is none; `top` of L positions, `alternatives` of L − 1.
    """

    logprobs: npt.NDArray[np.float32] | None = None
    top: TokenTable | None = None
    targets: pb.Tensor | None = None
    alternatives: TokenTable | None = None
    cache_hit_tokens: int = 0


def sampled_sequence(
    tokens: npt.NDArray[np.int32],
    logprobs: npt.NDArray[np.float32],
    stop_reason: Literal["stop", "length"],
    top: TokenTable | None = None,
) -> pb.SampledSequence:
    """One sample; `top` is of its tokens' positions."""
    return pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if stop_reason == "stop" else pb.STOP_REASON_LENGTH,
        tokens=tokens.astype("<i4", copy=False).tobytes(),
        logprobs=logprobs.astype("<f4", copy=False).tobytes(),
        topk_sampled_logprobs=_topk(top) if top is not None else None,
    )


def encode_sample(sequences: Sequence[pb.SampledSequence], prompt: PromptPart) -> bytes:
    """A `SampleResponse`."""
    response = pb.SampleResponse(
        sequences=sequences,
        topk_prompt_logprobs=_topk(prompt.top) if prompt.top is not None else None,
        prompt_cache_hit_tokens=prompt.cache_hit_tokens,
        target_prompt_logprobs=prompt.targets,
    )
    if prompt.logprobs is not None:
        response.prompt_logprobs = prompt.logprobs.astype("<f4", copy=False).tobytes()
    if prompt.alternatives is not None:
        response.prompt_alt_tokens.tokens.CopyFrom(dense_tensor(prompt.alternatives.tokens))
        response.prompt_alt_tokens.logprobs.CopyFrom(dense_tensor(prompt.alternatives.logprobs))
    return response.SerializeToString()


def _topk(table: TokenTable) -> pb.TopkLogprobs:
    length, k = table.tokens.shape
    empty = table.tokens < 0
    return pb.TopkLogprobs(
        token_ids=np.where(empty, EMPTY_TOKEN, table.tokens).astype("<i4", copy=False).tobytes(),
        logprobs=np.where(empty, EMPTY_LOGPROB, table.logprobs).astype("<f4", copy=False).tobytes(),
        k=k,
        length=length,
    )


def sample_as_json(body: bytes) -> dict[str, Any]:
    """A stored `SampleResponse` as older SDKs read it; what came after them has the names of the newer ones."""
    response = pb.SampleResponse.FromString(body)
    answer: dict[str, Any] = {
        "type": "sample",
        "sequences": [_sequence_as_json(sequence) for sequence in response.sequences],
        "prompt_cache_hit_tokens": response.prompt_cache_hit_tokens,
    }
    if response.HasField("prompt_logprobs"):
        answer["prompt_logprobs"] = finite(np.frombuffer(response.prompt_logprobs, "<f4").tolist())
    if response.HasField("topk_prompt_logprobs"):
        answer["topk_prompt_logprobs"] = _topk_as_json(response.topk_prompt_logprobs)
    if response.HasField("target_prompt_logprobs"):
        answer["target_prompt_logprobs"] = tensor_as_json(response.target_prompt_logprobs)
    if response.HasField("prompt_alt_tokens"):
        alternatives = response.prompt_alt_tokens
        answer["prompt_alt_tokens"] = {
            "tokens": tensor_as_json(alternatives.tokens),
            "logprobs": tensor_as_json(alternatives.logprobs),
        }
    return answer


def _sequence_as_json(sequence: pb.SampledSequence) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "stop_reason": "stop" if sequence.stop_reason == pb.STOP_REASON_STOP else "length",
        "tokens": np.frombuffer(sequence.tokens, "<i4").tolist(),
        "logprobs": finite(np.frombuffer(sequence.logprobs, "<f4").tolist()),
    }
    if sequence.HasField("topk_sampled_logprobs"):
        answer["topk_logprobs"] = _topk_as_json(sequence.topk_sampled_logprobs)
    return answer


def _topk_as_json(topk: pb.TopkLogprobs) -> list[list[tuple[int, float]] | None]:
    """For each position its pairs of id and log-probability, likeliest first; None for one without any."""
    shape = topk.length, topk.k
    ids = np.frombuffer(topk.token_ids, "<i4").reshape(shape).tolist()
    logprobs = np.frombuffer(topk.logprobs, "<f4").reshape(shape).tolist()
    rows = [
        [pair for pair in zip(*row, strict=True) if pair != (EMPTY_TOKEN, EMPTY_LOGPROB)]
        for row in zip(ids, logprobs, strict=True)
    ]
    return [row or None for row in rows]
