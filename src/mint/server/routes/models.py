"""Questions about runs that are answered at once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mint.server import access
from mint.server.dependencies import Owner, Ready
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
