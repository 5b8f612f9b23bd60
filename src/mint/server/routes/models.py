"""Runs that are in training: listed, asked about, given up."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import Connection

from mint.errors import InUseError
from mint.server import access, resources
from mint.server.dependencies import Owner, Ready
from mint.store import audit, counts, repository
from mint.wire.requests import ModelRequest

router = APIRouter(tags=["models"])


@router.post("/get_info")
async def get_info(request: ModelRequest, services: Ready, owner: Owner) -> dict[str, Any]:
    """A run's base model and LoRA. `tokenizer_id` of a local model is a folder on this machine."""
    run = await services.database.transaction(lambda c: access.run(c, request.model_id, owner))
    model = services.catalog.model(run.base_model)
    return {
        "type": "get_info",
        "model_id": run.run_id,
        "model_name": run.base_model,
        "is_lora": True,
        "lora_rank": run.lora_rank,
        "optimizer_config": {"type": "adamw"},
        "model_data": {
            "arch": model.architecture,
            "model_name": run.base_model,
            "tokenizer_id": model.tokenizer,
        },
    }


@router.get("/models")
async def list_models(services: Ready, owner: Owner) -> dict[str, Any]:
    """The caller's runs that can be trained now: of open sessions whose clients are heard of. Newest first."""
    heard_since = services.heard_since
    runs = await services.database.transaction(lambda c: repository.live_runs(c, owner, heard_since))
    return {
        "models": [
            {
                "model_id": run.run_id,
                "base_model": run.base_model,
                "is_lora": True,
                "lora_rank": run.lora_rank,
                "session_id": run.session_id,
                "created_at": resources.timestamp(run.created_at),
                "user_metadata": run.user_metadata,
            }
            for run in runs
        ]
    }


@router.delete("/models/{model_id}", status_code=204)
async def free_model(model_id: str, services: Ready, owner: Owner) -> Response:
    """Give a run up: it leaves the engine and takes no more work. Its checkpoints and samplers stay.

    400 while an operation of it has no result.
    """

    def free(connection: Connection) -> None:
        access.run(connection, model_id, owner)
        if count := counts.pending_of_run(connection, model_id):
            raise InUseError(f"{count} operations of {model_id} have no result yet", field="model_id")
        repository.free_run(connection, model_id)
        audit.record(connection, "training_run_free", owner, training_run_id=model_id)

    await services.database.transaction(free)
    services.dispatcher.unload(model_id)
    return Response(status_code=204)
