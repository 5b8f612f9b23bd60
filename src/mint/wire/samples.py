"""Results of `asample`: protobuf, or JSON for older SDKs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mint.wire import messages_pb2 as pb
from mint.wire.passes import finite


def sampled_sequence(
    tokens: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], stop_reason: Literal["stop", "length"]
) -> pb.SampledSequence:
    """One sample."""
    return pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if stop_reason == "stop" else pb.STOP_REASON_LENGTH,
        tokens=tokens.astype("<i4", copy=False).tobytes(),
        logprobs=logprobs.astype("<f4", copy=False).tobytes(),
    )


def encode_sample(sequences: Sequence[pb.SampledSequence], prompt_logprobs: npt.NDArray[np.float32] | None) -> bytes:
    """A `SampleResponse`; `prompt_logprobs` has NaN where there is none."""
    response = pb.SampleResponse(sequences=sequences)
    if prompt_logprobs is not None:
        response.prompt_logprobs = prompt_logprobs.astype("<f4", copy=False).tobytes()
    return response.SerializeToString()


def sample_as_json(body: bytes) -> dict[str, Any]:
    """A stored `SampleResponse` as older SDKs read it."""
    response = pb.SampleResponse.FromString(body)
    answer: dict[str, Any] = {
        "type": "sample",
        "sequences": [
            {
                "stop_reason": "stop" if sequence.stop_reason == pb.STOP_REASON_STOP else "length",
                "tokens": np.frombuffer(sequence.tokens, "<i4").tolist(),
                "logprobs": finite(np.frombuffer(sequence.logprobs, "<f4").tolist()),
            }
            for sequence in response.sequences
        ],
    }
    if response.HasField("prompt_logprobs"):
        answer["prompt_logprobs"] = finite(np.frombuffer(response.prompt_logprobs, "<f4").tolist())
    return answer
