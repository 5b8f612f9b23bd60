"""Robot policies: training steps in MinT's own form, and action sessions."""

from __future__ import annotations

import json
from secrets import randbits, token_hex
from time import time
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import Connection

from mint.errors import OperationCancelledError
from mint.server import access
from mint.server.body import read_body
from mint.server.dependencies import Caller, Owner, Ready
from mint.server.operations.cancel import give_up
from mint.server.operations.kinds import KINDS
from mint.server.operations.planning import LARGE_BODY, PLANNING, aside
from mint.server.operations.submit import submit
from mint.server.routes.operations import described
from mint.server.services import Services
from mint.store import repository
from mint.store.keys import Key
from mint.store.schema import Sampler
from mint.wire.documents import read_object
from mint.wire.passes import JSON
from mint.wire.requests import CreateActionSessionRequest

router = APIRouter(prefix="/mint", tags=["policies"])

VLA_TRAIN_STEP = "{model_id, loss_fn, loss_fn_config?, data: [{observation, supervision}], adam_params?, seq_id?}"
ACT = "{observation: {model_input, state?}, seq_id?, temperature?, seed?, max_tokens?}"
ACT_BATCH = "{observations: [{model_input, state?}], seq_id?, temperature?, seed?, max_tokens?}"


@router.post("/vla/train_step", openapi_extra=described(VLA_TRAIN_STEP))
async def vla_train_step(http: Request, services: Ready, caller: Caller) -> dict[str, Any]:
    """A pass and an optimizer step of a robot policy. Without `seq_id` it follows what its run has been sent."""
    body, content_type = await read_body(http, services.config.max_body_bytes)
    retry_key = http.headers.get("x-idempotency-key")
    operation = await submit(services, KINDS["vla_train_step"], body, content_type, caller, retry_key)
    services.presence.beat(operation.session_id)
    return {"request_id": operation.request_id, "model_id": operation.stream}


async def _completed(body: bytes, **fields: Any) -> bytes:
    """A JSON object with these fields in it."""
    pool = PLANNING if len(body) > LARGE_BODY else None
    return await aside(pool, lambda content: json.dumps({**read_object(content), **fields}).encode(), body)


@router.post("/action_sessions")
async def create_action_session(request: CreateActionSessionRequest, services: Ready, owner: Owner) -> dict[str, str]:
    """A policy to act by: a base model, or a checkpoint as it is now, whatever becomes of its run."""

    def create(connection: Connection) -> Sampler:
        access.session(connection, request.session_id, owner)
        base_model, path, directory = access.sample_source(connection, request.base_model, request.model_path, owner)
        services.catalog.actor(base_model)
        session = Sampler(
            sampler_id=f"{request.session_id}:act:{token_hex(8)}",
            session_id=request.session_id,
            session_seq_id=-1 - randbits(62),  # those of clients are 0 or more
            owner=owner,
            base_model=base_model,
            created_at=time(),
            model_path=path,
            directory=directory,
        )
        repository.insert(connection, session)
        return session

    session = await services.database.transaction(create)
    services.presence.beat(session.session_id)
    return {"action_session_id": session.sampler_id, "type": "create_action_session"}


@router.post("/action_sessions/{action_session_id}/act", openapi_extra=described(ACT))
async def act(action_session_id: str, http: Request, services: Ready, caller: Caller) -> dict[str, str]:
    """What to do now: a chunk of normalised actions, with the tokens that say it."""
    return await _act(services, "act", action_session_id, http, caller)


@router.post("/action_sessions/{action_session_id}/act_batch", openapi_extra=described(ACT_BATCH))
async def act_batch(action_session_id: str, http: Request, services: Ready, caller: Caller) -> dict[str, str]:
    """The same in several places at once."""
    return await _act(services, "act_batch", action_session_id, http, caller)


async def _act(services: Services, kind: str, action_session_id: str, http: Request, caller: Key) -> dict[str, str]:
    body, content_type = await read_body(http, services.config.max_body_bytes)
    if content_type == JSON:  # anything else is refused where it is read
        body = await _completed(body, action_session_id=action_session_id)
    operation = await submit(services, KINDS[kind], body, content_type, caller)
    services.presence.beat(operation.session_id)
    return {"request_id": operation.request_id, "action_session_id": action_session_id}


@router.delete("/action_sessions/{action_session_id}")
async def delete_action_session(action_session_id: str, services: Ready, owner: Owner) -> dict[str, str]:
    """End an action session; what it is doing is cancelled."""

    def delete(connection: Connection) -> None:
        access.action_session(connection, action_session_id, owner)
        repository.delete_sampler(connection, action_session_id)

    await services.database.transaction(delete)
    under_way = services.results.of_stream(action_session_id)
    parts = [part for request_id in under_way for part in services.samples.of_request(request_id)]
    error = OperationCancelledError("the action session was deleted")
    await give_up(services, parts, lambda each: each.stream == action_session_id, error)
    return {"action_session_id": action_session_id, "type": "delete_action_session"}
