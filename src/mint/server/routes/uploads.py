"""Uploads of checkpoints: adapters made elsewhere, and what was downloaded from here or another server of this kind."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request

from mint.server.dependencies import Caller, Ready
from mint.server.uploads.checkpoint import upload
from mint.wire.rest import UploadRequest

PATH = "/checkpoints/upload"

router = APIRouter(tags=["checkpoints"])

FILE = {"type": "string", "format": "binary", "description": "A tar archive, plain or compressed with gzip or zstd."}
FORM = {"type": "object", "required": ["file"], "properties": {"file": FILE}}
FORM["properties"] |= UploadRequest.model_json_schema()["properties"]


@router.post(PATH, openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": FORM}}}})
async def upload_checkpoint(
    http: Request, services: Ready, caller: Caller, x_idempotency_key: Annotated[str | None, Header()] = None
) -> dict[str, Any]:
    """A new checkpoint from a PEFT adapter, or from a training checkpoint's archive: then with its optimizer."""
    return await upload(services, http, caller, x_idempotency_key)
