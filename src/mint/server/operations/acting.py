"""Operations of robot policies: a training step in MinT's own form, act and act_batch."""

from __future__ import annotations

import hashlib
import re
import secrets
from time import time
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import (
    ModelInfo,
    Result,
    Sample,
    SampleBatch,
    Sampled,
    SampledBatch,
    SamplingParams,
    TrainStep,
)
from mint.engine.loss_specs import check_token_ids
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.datums import image_reader, read_input
from mint.server.operations.kind import Completion, Kind, expect, parse_object
from mint.server.operations.sampling import revision_of
from mint.server.operations.train_step import TrainStepKind, TrainStepRequest
from mint.store.schema import Operation
from mint.wire.acting import ActRequest, act_from_json, acted, vla_step_from_json
from mint.wire.chunks import ModelInput
from mint.wire.passes import read_json
from mint.wire.requests import OptimizerParams

MAX_TOKENS = 256
"""Of one answer unless the request says otherwise; a chunk of LIBERO takes some thirty."""

MAX_OBSERVATIONS = 256


class VlaTrainStep(TrainStepKind):
    """train_step of a robot policy, whose data say what is observation and what supervision."""

    name = "vla_train_step"

    @override
    def parse(self, body: bytes, content_type: str) -> TrainStepRequest:
        document = read_json(body, content_type)
        return TrainStepRequest(vla_step_from_json(document), parse_object(OptimizerParams, document))

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: TrainStepRequest) -> TrainStep:
        try:
            return super().plan(catalog, operation, request)
        except BadRequestError as error:
            raise _in_this_form(error) from None


def _in_this_form(error: BadRequestError) -> BadRequestError:
    """The refusal, with its field as this form of a datum calls it."""
    field = error.field or ""
    text = str(error).removeprefix(f"{field}: ")
    field = field.replace(".loss_fn_inputs.state", ".observation.state").replace(".loss_fn_inputs.", ".supervision.")
    field = re.sub(r"^(data\[\d+\])\.model_input", r"\1.observation.model_input", field)
    return BadRequestError(text, field=field or None, datum=error.datum)


class ActBatch(Kind[ActRequest]):
    """What to do in several places, by the policy of an action session."""

    name = "act_batch"
    ordered = False
    replayed = False
    lines_up = True
    reads_images = True

    @override
    def parse(self, body: bytes, content_type: str) -> ActRequest:
        return act_from_json(body, content_type, batch=True)

    @override
    def stream(self, request: ActRequest) -> tuple[str, int]:
        seq_id = request.seq_id if request.seq_id is not None else secrets.randbits(62)
        return request.action_session_id, seq_id

    @override
    def resolve(self, connection: Connection, catalog: Catalog, request: ActRequest, owner: str) -> dict[str, Any]:
        session = access.action_session(connection, request.action_session_id, owner)
        access.session(connection, session.session_id, owner)
        catalog.actor(session.base_model)
        if not 1 <= len(request.observations) <= MAX_OBSERVATIONS:
            raise BadRequestError(
                f"are {len(request.observations)}; a request has 1 to {MAX_OBSERVATIONS}", field="observations"
            )
        return {"model": session.base_model, "directory": session.directory}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: ActRequest) -> SampleBatch:
        model = catalog.actor(operation.facts["model"])
        reader = image_reader(model)
        revision = revision_of(catalog, operation.facts["directory"])
        seed = request.seed
        if seed is None:
            seed = _hashed(operation.request_id.encode())
        samples = []
        for index, observation in enumerate(request.observations):
            prompt, images = read_input(observation, model, reader)
            check_token_ids(prompt, model, observation.where)
            # the first is drawn as by itself
            own = seed if index == 0 else _hashed(f"{seed}:{index}".encode())
            params = _params(request, model, len(prompt), observation, own)
            samples.append(Sample(revision, prompt, 1, params, images=images, whole=True))
        return SampleBatch(tuple(samples))

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: ActRequest, result: Result) -> Completion:
        results = [self._acted(catalog, operation, each) for each in expect(result, SampledBatch).results]
        return Completion.json({"results": results, "type": self.name, **_timing(operation)})

    def _acted(self, catalog: Catalog, operation: Operation, sampled: Sampled) -> dict[str, Any]:
        (sequence,) = sampled.sequences
        decoded = catalog.decode_actions(operation.facts["model"], sequence.tokens.tolist())
        answer = acted(decoded.actions, sequence.tokens, sequence.logprobs, decode_ok=decoded.ok)
        return {**answer, **_timing(operation)}


class Act(ActBatch):
    """What to do now."""

    name = "act"

    @override
    def parse(self, body: bytes, content_type: str) -> ActRequest:
        return act_from_json(body, content_type, batch=False)

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: ActRequest, result: Result) -> Completion:
        (sampled,) = expect(result, SampledBatch).results
        return Completion.json({**self._acted(catalog, operation, sampled), "type": self.name})


def _hashed(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8])


def _timing(operation: Operation) -> dict[str, Any]:
    """What clients of policies watch: milliseconds from the request's acceptance to its answer."""
    return {"policy_timing": {"infer_ms": round(1000 * (time() - operation.created_at), 3)}}


def _params(request: ActRequest, model: ModelInfo, prompt: int, observation: ModelInput, seed: int) -> SamplingParams:
    room = model.max_sample_length - prompt
    max_tokens = request.max_tokens if request.max_tokens is not None else min(MAX_TOKENS, room)
    if not 1 <= max_tokens <= room:
        raise BadRequestError(
            f"{model.capacity}; the observation has {prompt}, and max_tokens is {max_tokens}",
            field="max_tokens" if room >= 1 else observation.where,
        )
    stops = frozenset(model.stop_token_ids)
    return SamplingParams(max_tokens, seed, temperature=request.temperature, stop_token_ids=stops)
