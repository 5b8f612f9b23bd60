"""Tokenizers of served models, for clients that do not see the server's files."""

from __future__ import annotations

import asyncio
import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from mint.errors import NotFoundError
from mint.server.dependencies import Owner, Ready
from mint.server.services import Services

router = APIRouter(tags=["models"])

SUFFIXES = (".json", ".jinja", ".txt", ".model")
"""Of files that a tokenizer is made of; weights have others."""

OTHERS = ("generation_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Have such a suffix, and say nothing of a tokenizer."""

ModelName = Annotated[str, Query(max_length=512)]


@router.get("/tokenizer")
async def tokenizer(model_name: ModelName, services: Ready, _owner: Owner) -> dict[str, Any]:
    """The files of a served model's tokenizer and their SHA-256, to be fetched one by one.

    404 for a model whose tokenizer is not in a folder of this server: it is loaded from its hub, by its name.
    """
    folder = _folder(services, model_name)
    files = await asyncio.to_thread(_hashes, folder)
    return {"model_name": model_name, "files": files}


@router.get("/tokenizer/file", response_class=FileResponse)
async def tokenizer_file(
    model_name: ModelName, name: Annotated[str, Query(max_length=256)], services: Ready, _owner: Owner
) -> FileResponse:
    """One of these files."""
    folder = _folder(services, model_name)
    if name not in await asyncio.to_thread(_hashes, folder):
        raise NotFoundError(f"{name!r} is no file of the tokenizer of {model_name!r}", field="name")
    return FileResponse(folder / name, media_type="application/octet-stream")


def _folder(services: Services, model_name: str) -> Path:
    model = services.catalog.model(model_name)
    folder = Path(model.tokenizer)
    if not folder.is_dir():
        raise NotFoundError(f"the tokenizer of {model_name!r} is {model.tokenizer!r}, from its hub", field="model_name")
    return folder


@cache
def _hashes(folder: Path) -> dict[str, str]:
    """By name. A worker has loaded the model from there: the files do not change while it is served."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name not in OTHERS}
