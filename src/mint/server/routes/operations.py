"""Everything that is answered with a future: training, weights, sampling."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel

from mint.server.body import read_body
from mint.server.dependencies import Caller, Ready
from mint.server.operations import custom_loss
from mint.server.operations.interpolation import Interpolation
from mint.server.operations.kinds import KINDS
from mint.server.operations.submit import submit
from mint.server.services import Services
from mint.store.keys import Key
from mint.store.schema import Operation
from mint.wire.documents import read_object
from mint.wire.passes import JSON, PROTOBUF
from mint.wire.requests import (
    CreateCustomLossRequest,
    CreateModelRequest,
    LoadWeightsRequest,
    OptimStepRequest,
    SampleRequest,
    SaveAndCreateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
)
from mint.wire.rest import InterpolateRequest

router = APIRouter(tags=["operations"])


def _documented(model: type[BaseModel]) -> dict[str, Any]:
    """The body for OpenAPI: routes read it raw, because the journal keeps it as it came."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {JSON: {"schema": _inlined(schema, schema.get("$defs", {}))}}}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema with its definitions where they are referred to: a document has no place for those of one body."""
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(each, definitions) for name, each in node.items() if name != "$defs"}


PASS_BODY = {
    "requestBody": {
        "required": True,
        "description": "A ForwardBackwardRequest of messages.proto, or the JSON of older SDKs; zstd or plain.",
        "content": {
            PROTOBUF: {"schema": {"type": "string", "format": "binary"}},
            JSON: {"schema": {"type": "object"}},
        },
    }
}


def described(fields: str) -> dict[str, Any]:
    """A JSON body that is read by hand."""
    content = {JSON: {"schema": {"type": "object"}}}
    return {"requestBody": {"required": True, "description": f"`{fields}`", "content": content}}


TRAIN_STEP = "{forward_backward_input: {data, loss_fn, loss_fn_config}, adam_params, model_id, seq_id}"
REVERSE_KL = (
    "{model_id, reference_model_path, data: [{student_input, reference_input, target_tokens, weights}], temperature, "
    "seq_id}"
)


async def _submit(services: Services, kind: str, http: Request, caller: Key) -> Operation:
    body, content_type = await read_body(http, services.config.max_body_bytes)
    retry_key = http.headers.get("x-idempotency-key")
    operation = await submit(services, KINDS[kind], body, content_type, caller, retry_key)
    services.presence.beat(operation.session_id)
    return operation


async def _training(services: Services, kind: str, http: Request, caller: Key) -> dict[str, Any]:
    operation = await _submit(services, kind, http, caller)
    return {"request_id": operation.request_id, "model_id": operation.stream}


@router.post("/create_model", openapi_extra=_documented(CreateModelRequest))
async def create_model(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """A new run with a fresh LoRA."""
    return await _training(services, "create_model", http, caller)


@router.post("/forward_backward", openapi_extra=PASS_BODY)
async def forward_backward(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Losses and log-probabilities; gradients are added to the run's, unless `forward_only`."""
    return await _training(services, "forward_backward", http, caller)


@router.post("/forward", openapi_extra=PASS_BODY)
async def forward(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """As forward_backward without gradients; older SDKs send this."""
    return await _training(services, "forward", http, caller)


@router.post("/create_custom_loss", openapi_extra=_documented(CreateCustomLossRequest))
async def create_custom_loss(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """A loss of one's own, as a graph of tensor operations; forward_backward computes it under its `loss_id`."""
    body, _ = await read_body(http, custom_loss.MAX_BYTES)
    operation = await custom_loss.create_custom_loss(services, body, caller.owner)
    return {"request_id": operation.request_id}


@router.post("/optim_step", openapi_extra=_documented(OptimStepRequest))
async def optim_step(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Apply the accumulated gradients."""
    return await _training(services, "optim_step", http, caller)


@router.post("/train_step", openapi_extra=described(TRAIN_STEP))
async def train_step(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """forward_backward and optim_step as one operation: both happen or neither."""
    return await _training(services, "train_step", http, caller)


@router.post("/mint/forward_backward_reverse_kl", openapi_extra=described(REVERSE_KL))
async def forward_backward_reverse_kl(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Gradients of the reverse KL to a checkpoint or the base model are added to the run's."""
    return await _training(services, "forward_backward_reverse_kl", http, caller)


@router.post("/save_weights", openapi_extra=_documented(SaveWeightsRequest))
async def save_weights(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Write a training checkpoint."""
    return await _training(services, "save_weights", http, caller)


@router.post("/save_weights_for_sampler", openapi_extra=_documented(SaveWeightsForSamplerRequest))
async def save_weights_for_sampler(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Write a revision that can be sampled."""
    return await _training(services, "save_weights_for_sampler", http, caller)


@router.post("/save_weights_external", openapi_extra=_documented(SaveWeightsExternalRequest))
async def save_weights_external(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Write the weights for download, encrypted if recipients are given."""
    return await _training(services, "save_weights_external", http, caller)


@router.post("/sampling_clients/save_and_create", openapi_extra=_documented(SaveAndCreateRequest))
async def save_and_create(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Write a revision and make a sampling session of it; with a name it is a checkpoint."""
    return await _training(services, "save_and_create", http, caller)


@router.post("/create_model_from_state", openapi_extra=_documented(LoadWeightsRequest))
async def create_model_from_state(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """As load_weights, for a new run."""
    return await _training(services, "load_weights", http, caller)


@router.post("/load_weights", openapi_extra=_documented(LoadWeightsRequest))
async def load_weights(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Load a checkpoint, into a run or as a new one."""
    return await _training(services, "load_weights", http, caller)


@router.post("/compute_logprobs", openapi_extra=_documented(SampleRequest))
async def compute_logprobs(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """As asample, asked for the log-probabilities of the prompt's tokens."""
    body, _ = await read_body(http, services.config.max_body_bytes)
    request = read_object(body)
    asked = {"prompt_logprobs": True, "num_samples": 1, "sampling_params": {"max_tokens": 1, "temperature": 0.0}}
    operation = await submit(services, KINDS["sample"], json.dumps(request | asked).encode(), JSON, caller)
    return _sampling(services, operation)


@router.post("/asample", openapi_extra=_documented(SampleRequest))
async def asample(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """Draw continuations of a prompt. The ids of the sequences are settled now, their tokens later."""
    return _sampling(services, await _submit(services, "sample", http, caller))


def _sampling(services: Services, operation: Operation) -> dict[str, Any]:
    services.presence.beat(operation.session_id)
    ids = [f"{operation.request_id}:{index}" for index in range(operation.facts["num_samples"])]
    return {"request_id": operation.request_id, "sample_sequence_ids": ids}


@router.post("/mint/checkpoints/interpolate", openapi_extra=_documented(InterpolateRequest))
@router.post("/checkpoints/interpolate", openapi_extra=_documented(InterpolateRequest))
async def interpolate(
    http: Request,
    services: Ready,
    caller: Caller,
    x_idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """A checkpoint that is the weighted sum of others. A retry is told by its key and body."""
    body, content_type = await read_body(http, services.config.max_body_bytes)
    retry = "\0".join((caller.owner, x_idempotency_key)).encode() + body if x_idempotency_key is not None else None
    kind = Interpolation(sha256(retry).hexdigest() if retry is not None else None)
    operation = await submit(services, kind, body, content_type, caller)
    return {"request_id": operation.request_id}
