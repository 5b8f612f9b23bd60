"""asample."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import numpy as np
from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import ModelInfo, PromptQuery, Result, Revision, Sample, Sampled, SamplingParams, TopLogprobs
from mint.engine.loss_specs import check_token_ids
from mint.errors import BadRequestError, GoneError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.datums import read_input
from mint.server.operations.kind import Completion, Kind, expect, parse_json
from mint.store.schema import Operation
from mint.wire import requests
from mint.wire.chunks import ModelInput, chunk_from_json
from mint.wire.passes import PROTOBUF
from mint.wire.requests import SampleRequest
from mint.wire.samples import PromptPart, TokenTable, encode_sample, sampled_sequence
from mint.wire.targets import FIELD as TARGETS
from mint.wire.targets import PromptTargets, decode_targets

WITHOUT_SESSION = "sample"
"""The stream of samples that name a model and no sampling session; their numbers are drawn here."""

MAX_STOPS, MAX_STOP_BYTES = 64, 1 << 16
"""Stop strings of a request, and their bytes in sum: each is looked for at every token."""

MAX_DRAWN = 1 << 16
"""Alternatives of a prompt's tokens in one request: each is drawn by itself, and all in one step."""

MAX_TOKENS = 1 << 22
"""Of one request, drawn or told of, in sum over its sequences or positions."""


class AsyncSample(Kind[SampleRequest]):
    """Draw continuations of a prompt, from a sampling session or straight from a model."""

    name = "sample"
    ordered = False
    replayed = False
    lines_up = True
    reads_images = True

    @override
    def parse(self, body: bytes, content_type: str) -> SampleRequest:
        request = parse_json(SampleRequest, body)
        if request.sampling_session_id is not None and (request.base_model or request.model_path):
            raise BadRequestError(
                "is given together with base_model or model_path; a session has its model", field="sampling_session_id"
            )
        return request

    @override
    def stream(self, request: SampleRequest) -> tuple[str, int]:
        if request.sampling_session_id is None:
            return WITHOUT_SESSION, secrets.randbits(62)
        seq_id = request.seq_id if request.seq_id is not None else secrets.randbits(62)
        return request.sampling_session_id, seq_id

    @override
    def resolve(self, connection: Connection, catalog: Catalog, request: SampleRequest, owner: str) -> dict[str, Any]:
        if request.sampling_session_id is None:
            model, _, directory = access.sample_source(connection, request.base_model, request.model_path, owner)
        else:
            sampler = access.sampler(connection, request.sampling_session_id, owner)
            access.session(connection, sampler.session_id, owner)
            model, directory = sampler.base_model, sampler.directory
        return {"model": model, "directory": directory, "num_samples": request.num_samples}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SampleRequest) -> Sample:
        model = catalog.writer(operation.facts["model"])
        prompt, images = read_input(_prompt(request), model, catalog.image_reader(model, operation.owner))
        if images:
            _refuse_query(request)
        check_token_ids(prompt, model, "prompt")
        params = _params(request.sampling_params, model, len(prompt), operation.request_id)
        drawn = request.num_samples * params.max_tokens
        _limit("num_samples", request.num_samples, params.max_tokens, "max_tokens", MAX_TOKENS)
        _limit("topk_sample_logprobs", request.topk_sample_logprobs, drawn, "tokens", MAX_TOKENS)
        return Sample(
            revision=revision_of(catalog, operation.facts["directory"]),
            prompt=prompt,
            num_samples=request.num_samples,
            params=params,
            query=_query(request, model, len(prompt)),
            top_logprobs=request.topk_sample_logprobs,
            images=images,
        )

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: SampleRequest, result: Result) -> Completion:
        sampled = expect(result, Sampled)
        sequences = [sampled_sequence(s.tokens, s.logprobs, s.stop_reason, _table(s.top)) for s in sampled.sequences]
        return Completion(encode_sample(sequences, _prompt_part(request, sampled)), PROTOBUF)


def revision_of(catalog: Catalog, directory: str | None, field: str = "sampling_session_id") -> Revision | None:
    """The revision in a checkpoint folder; None is the base model. `field` is what the request names it by.

    Raises:
        GoneError: the folder is not there any more.
    """
    if directory is None:
        return None
    if catalog.store.is_gone(directory):
        raise GoneError(
            "its weights are gone: those without a name are kept while the client of their session is heard of",
            field=field,
        )
    return Revision(directory, catalog.checkpoint_dir / directory)


def _limit(field: str, each: int, count: int, what: str, limit: int) -> None:
    """Refuse a request whose answer would be too large."""
    if each * count > limit:
        raise BadRequestError(
            f"{each} × {count} {what} is {each * count}; in one request it may be {limit}", field=field
        )


def _query(request: SampleRequest, model: ModelInfo, length: int) -> PromptQuery:
    """What is asked about the prompt; positions are those that some token precedes."""
    positions, last = length - 1, request.prompt_logprobs_last_n
    if last is not None and not request.prompt_logprobs:
        raise BadRequestError("needs prompt_logprobs, of which it says how many", field="prompt_logprobs_last_n")
    if last is not None and last > positions:
        raise BadRequestError(
            f"is {last}; of a prompt of {length} tokens, the last {positions} can be told",
            field="prompt_logprobs_last_n",
        )
    for field in ("topk_prompt_logprobs", "topk_sample_logprobs"):
        if getattr(request, field) > model.vocab_size:
            raise BadRequestError(f"{model.name} has {model.vocab_size} tokens to tell of", field=field)
    _limit("topk_prompt_logprobs", request.topk_prompt_logprobs, positions, "positions", MAX_TOKENS)
    _limit("prompt_alt_tokens_k", request.prompt_alt_tokens_k, positions, "positions", MAX_DRAWN)
    targets = _targets(request, length)
    if targets is not None and not ((targets.ids >= -1) & (targets.ids < model.vocab_size)).all():
        raise BadRequestError(f"has an id outside -1…{model.vocab_size - 1}", field=TARGETS)
    return PromptQuery(
        last=(last or positions) if request.prompt_logprobs or request.topk_prompt_logprobs else 0,
        top=request.topk_prompt_logprobs,
        targets=targets.ids if targets is not None else None,
        alternatives=request.prompt_alt_tokens_k if positions else 0,
    )


def _refuse_query(request: SampleRequest) -> None:
    """There is no token where an image stands, and so nothing to tell of it."""
    for field in ("prompt_logprobs", "topk_prompt_logprobs", "target_prompt_logprobs", "prompt_alt_tokens_k"):
        if getattr(request, field):
            raise BadRequestError("is not served for a prompt with images", field=field)


def _targets(request: SampleRequest, length: int) -> PromptTargets | None:
    value = request.target_prompt_logprobs
    return decode_targets(value, length) if value is not None else None


def _prompt_part(request: SampleRequest, sampled: Sampled) -> PromptPart:
    """The answers that were asked for; of a prompt of one token there is nothing to tell, in as many places."""
    answer, length = sampled.prompt, sum(len(chunk.tokens or ()) for chunk in request.prompt.chunks)
    logprobs, top, alternatives = answer.logprobs, _table(answer.top), _table(answer.alternatives)
    if length == 1:
        logprobs = np.full(1, np.nan, np.float32)
        top = _nothing(1, request.topk_prompt_logprobs)
        alternatives = _nothing(0, request.prompt_alt_tokens_k)
    targets = _targets(request, length)
    return PromptPart(
        logprobs=logprobs if request.prompt_logprobs else None,
        top=top if request.topk_prompt_logprobs else None,
        targets=targets.answer(answer.targets) if targets is not None and answer.targets is not None else None,
        alternatives=alternatives if request.prompt_alt_tokens_k else None,
        cache_hit_tokens=sampled.cached_tokens,
    )


def _table(top: TopLogprobs | None) -> TokenTable | None:
    return TokenTable(top.tokens, top.logprobs) if top is not None else None


def _nothing(positions: int, each: int) -> TokenTable:
    return TokenTable(np.full((positions, each), -1, np.int32), np.full((positions, each), -np.inf, np.float32))


def _prompt(request: SampleRequest) -> ModelInput:
    chunks = request.prompt.chunks
    if not chunks:
        raise BadRequestError("has no tokens; a sample needs at least one", field="prompt")
    read = (
        chunk_from_json(chunk.model_dump(exclude_none=True), f"prompt.chunks[{place}]")
        for place, chunk in enumerate(chunks)
    )
    return ModelInput(tuple(read), "prompt")


def _params(params: requests.SamplingParams, model: ModelInfo, prompt: int, request_id: str) -> SamplingParams:
    """Engine parameters; the request's id stands in for a missing seed, so that a replay draws the same."""
    room = model.max_sample_length - prompt
    max_tokens = params.max_tokens if params.max_tokens is not None else room
    if room < 1 or max_tokens > room:
        raise BadRequestError(
            f"{model.capacity}; the prompt has {prompt}, and max_tokens is {max_tokens}",
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
    size = sum(len(text.encode()) for text in texts)
    if len(texts) > MAX_STOPS or size > MAX_STOP_BYTES:
        raise BadRequestError(
            f"has {len(texts)} strings of {size} bytes; it may have {MAX_STOPS}, of {MAX_STOP_BYTES} bytes in sum",
            field="sampling_params.stop",
        )
    return frozenset(ids), tuple(text.encode() for text in texts)
