"""Sampling sessions."""

from __future__ import annotations

from time import time
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection

from mint.errors import BadRequestError
from mint.server import access
from mint.server.dependencies import Owner, Ready
from mint.server.operations.weights import sampler_id_of
from mint.store import repository
from mint.store.schema import Sampler
from mint.wire.paths import CheckpointPath
from mint.wire.requests import CreateSamplingSessionRequest

router = APIRouter(tags=["samplers"])


@router.post("/create_sampling_session")
async def create_sampling_session(
    request: CreateSamplingSessionRequest, services: Ready, owner: Owner
) -> dict[str, str]:
    """A sampler of a base model or of a checkpoint. A number of a session is one sampler."""

    def create(connection: Connection) -> Sampler:
        access.session(connection, request.session_id, owner)
        base_model, path, directory = _source(connection, request, owner)
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


def _source(
    connection: Connection, request: CreateSamplingSessionRequest, owner: str
) -> tuple[str, str | None, str | None]:
    """Base model, path and folder of what is to be sampled."""
    if request.model_path is None:
        if request.base_model is None:
            raise BadRequestError("give a base_model or a model_path", field="base_model")
        return request.base_model, None, None
    path = str(CheckpointPath.parse(request.model_path, "model_path"))
    checkpoint = access.checkpoint(connection, path, owner, "model_path")
    if request.base_model is not None and request.base_model != checkpoint.base_model:
        raise BadRequestError(
            f"is {request.base_model!r}, but {path} was trained on {checkpoint.base_model!r}",
            field="base_model",
        )
    return checkpoint.base_model, path, checkpoint.directory


@router.get("/samplers/{sampler_id:path}")
async def get_sampler(sampler_id: str, services: Ready, owner: Owner) -> dict[str, Any]:
    """What a sampler samples."""
    sampler = await services.database.transaction(lambda c: access.sampler(c, sampler_id, owner))
    answer = {"sampler_id": sampler.sampler_id, "base_model": sampler.base_model}
    return {**answer, "model_path": sampler.model_path} if sampler.model_path else answer
