"""asample."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numpy as np
from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import ModelInfo, PromptQuery, Result, Revision, Sample, Sampled, SamplingParams
from mint.engine.loss_specs import check_token_ids
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, expect, parse_json
from mint.store.schema import Operation
from mint.wire import requests
from mint.wire.documents import chunk_tokens
from mint.wire.passes import PROTOBUF
from mint.wire.requests import SampleRequest
from mint.wire.samples import encode_sample, sampled_sequence

NOT_SERVED = (
    "topk_prompt_logprobs",
    "topk_sample_logprobs",
    "prompt_alt_tokens_k",
    "target_prompt_logprobs",
)
"""Request fields that would need an answer this server cannot give yet."""


class AsyncSample(Kind[SampleRequest]):
    """Draw continuations of a prompt from a sampling session."""

    name = "sample"
    ordered = False
    replayed = False

    @override
    def parse(self, body: bytes, content_type: str) -> SampleRequest:
        return parse_json(SampleRequest, body)

    @override
    def stream(self, request: SampleRequest) -> tuple[str, int]:
        seq_id = request.seq_id if request.seq_id is not None else secrets.randbits(62)
        return request.sampling_session_id, seq_id

    @override
    def resolve(self, connection: Connection, catalog: Catalog, request: SampleRequest, owner: str) -> dict[str, Any]:
        sampler = access.sampler(connection, request.sampling_session_id, owner)
        access.session(connection, sampler.session_id, owner)
        return {
            "model": sampler.base_model,
            "directory": sampler.directory,
            "num_samples": request.num_samples,
        }

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SampleRequest) -> Sample:
        for name in NOT_SERVED:
            if getattr(request, name):
                raise BadRequestError("is not served yet; prompt_logprobs is", field=name)
        model = catalog.model(operation.facts["model"])
        prompt = _prompt(request)
        check_token_ids(prompt, model, "prompt")
        directory: str | None = operation.facts["directory"]
        return Sample(
            revision=Revision(directory, catalog.checkpoint_dir / directory) if directory else None,
            prompt=prompt,
            num_samples=request.num_samples,
            params=_params(request.sampling_params, model, len(prompt), operation.request_id),
            query=PromptQuery(last=len(prompt) - 1 if request.prompt_logprobs else 0),
        )

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: SampleRequest, result: Result) -> Completion:
        sampled = expect(result, Sampled)
        sequences = [sampled_sequence(s.tokens, s.logprobs, s.stop_reason) for s in sampled.sequences]
        prompt_logprobs = sampled.prompt.logprobs
        if prompt_logprobs is not None and request.prompt_logprobs_last_n is not None:
            prompt_logprobs = prompt_logprobs.copy()
            prompt_logprobs[: max(0, len(prompt_logprobs) - request.prompt_logprobs_last_n)] = np.nan
        return Completion(encode_sample(sequences, prompt_logprobs), PROTOBUF)


def _prompt(request: SampleRequest) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    chunks = request.prompt.chunks
    if not chunks:
        raise BadRequestError("has no tokens; a sample needs at least one", field="prompt")
    return np.concatenate(
        [
            chunk_tokens(chunk.model_dump(exclude_none=True), f"prompt.chunks[{place}]")
            for place, chunk in enumerate(chunks)
        ]
    )


def _params(params: requests.SamplingParams, model: ModelInfo, prompt: int, request_id: str) -> SamplingParams:
    """Engine parameters; the request's id stands in for a missing seed, so that a replay draws the same."""
    room = model.max_sample_length - prompt
    max_tokens = params.max_tokens if params.max_tokens is not None else room
    if room < 1 or max_tokens > room:
        raise BadRequestError(
            f"prompt of {prompt} tokens and max_tokens {max_tokens} are more than {model.name} can hold here, "
            f"{model.max_sample_length} tokens",
            field="sampling_params.max_tokens" if room >= 1 else "prompt",
        )
    ids, texts = _stops(params.stop, model)
    seed = params.seed
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8])
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        stop_token_ids=ids,
        stop_bytes=texts,
    )


def _stops(stop: str | list[str] | list[int] | None, model: ModelInfo) -> tuple[frozenset[int], tuple[bytes, ...]]:
    """Stop ids and stop strings. Absent: the model's end tokens. An empty list: only the length stops."""
    if stop is None:
        return frozenset(model.stop_token_ids), ()
    entries = [stop] if isinstance(stop, str) else stop
    ids = [entry for entry in entries if isinstance(entry, int)]
    texts = [entry for entry in entries if isinstance(entry, str)]
    if ids:
        check_token_ids(np.array(ids), model, "sampling_params.stop")
    if not all(texts):
        raise BadRequestError("has an empty string", field="sampling_params.stop")
    return frozenset(ids), tuple(text.encode() for text in texts)
