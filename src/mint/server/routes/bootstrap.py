"""What clients ask before anything else: health, configuration, capabilities."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from mint.server.client_settings import DYNAMIC, settings_for
from mint.server.dependencies import AnyTime, Credential, Owner, Poller, Ready
from mint.wire.requests import ClientConfigRequest, TelemetryRequest

router = APIRouter(tags=["bootstrap"])


@router.get("/healthz")
async def healthz(services: AnyTime) -> JSONResponse:
    """200 once every model is loaded and has a worker; 503 before, and while a worker starts again."""
    if services.started.is_set() and services.fleet.ready:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "starting", "detail": "models are being loaded"}, 503)


@router.post("/client/config")
async def client_config(
    request: ClientConfigRequest, services: AnyTime, credential: Credential, _owner: Poller
) -> dict[str, Any]:
    """Settings of the SDK, for the version that asks."""
    mint_key = credential.startswith("sk-")
    return settings_for(request.sdk_version, jwt_auth=services.config.jwt_auth, mint_key=mint_key)


@router.post("/client/dynamic_config")
async def dynamic_config(_request: ClientConfigRequest, _owner: Poller) -> dict[str, Any]:
    """Settings that the SDK asks for again and again."""
    return DYNAMIC


@router.post("/telemetry")
async def telemetry(_request: TelemetryRequest, _owner: Poller) -> dict[str, str]:
    """Events that the SDK reports about itself; they are received and not kept."""
    return {"status": "accepted"}


@router.get("/get_server_capabilities")
async def capabilities(services: Ready, _owner: Owner) -> dict[str, Any]:
    """The base models that can be trained and sampled."""
    return {
        "supported_models": [
            {
                "model_name": model.name,
                "max_context_length": model.max_context_length,
                "trainable": True,
                "sampleable": model.policy is None,
            }
            for model in services.fleet.models()
        ]
    }
