"""Sampling sessions."""

from __future__ import annotations

from time import time
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection

from mint.server import access
from mint.server.dependencies import Owner, Ready
from mint.server.operations.weights import sampler_id_of
from mint.store import repository
from mint.store.schema import Sampler
from mint.wire.requests import CreateSamplingSessionRequest, JoinSamplingSessionRequest

router = APIRouter(tags=["samplers"])


@router.post("/create_sampling_session")
async def create_sampling_session(
    request: CreateSamplingSessionRequest, services: Ready, owner: Owner
) -> dict[str, str]:
    """A sampler of a base model or of a checkpoint. A number of a session is one sampler."""

    def create(connection: Connection) -> Sampler:
        access.session(connection, request.session_id, owner)
        base_model, path, directory = access.sample_source(connection, request.base_model, request.model_path, owner)
        services.catalog.model(base_model)
        sampler = Sampler(
            sampler_id=sampler_id_of(request.session_id, request.sampling_session_seq_id),
            session_id=request.session_id,
            session_seq_id=request.sampling_session_seq_id,
            owner=owner,
            base_model=base_model,
            created_at=time(),
            model_path=path,
            directory=directory,
        )
        return repository.put_sampler(connection, sampler)

    sampler = await services.database.transaction(create)
    return {"sampling_session_id": sampler.sampler_id, "type": "create_sampling_session"}


@router.post("/join_sampling_session")
async def join_sampling_session(
    request: JoinSamplingSessionRequest, services: Ready, owner: Owner
) -> dict[str, str | int]:
    """A number for a copy of a sampling client, which numbers its samples from 10⁹ times that on."""
    sampler_id = request.sampling_session_id

    def join(connection: Connection) -> int:
        sampler = access.sampler(connection, sampler_id, owner)
        access.session(connection, sampler.session_id, owner)
        return repository.count_clone(connection, sampler_id)

    return {"client_counter": await services.database.transaction(join), "type": "join_sampling_session"}


@router.get("/samplers/{sampler_id:path}")
async def get_sampler(sampler_id: str, services: Ready, owner: Owner) -> dict[str, Any]:
    """What a sampler samples."""
    sampler = await services.database.transaction(lambda c: access.sampler(c, sampler_id, owner))
    answer = {"sampler_id": sampler.sampler_id, "base_model": sampler.base_model}
    return {**answer, "model_path": sampler.model_path} if sampler.model_path else answer
