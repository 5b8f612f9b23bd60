"""From an upload to a checkpoint: received, unpacked, checked, written anew, committed, named.

It becomes visible in one transaction at the end. Until then there are a folder of its own below `uploads`, which goes
with the request, and a staged folder, which the sweeper finds if a crash leaves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from tempfile import TemporaryDirectory
from time import time
from typing import Any

from fastapi import Request as HttpRequest
from sqlalchemy import Connection

from mint.engine.core import LoraShape, ModelInfo
from mint.engine.formats import CONFIG_FILE, OPTIMIZER_FILE, WEIGHTS_FILE
from mint.errors import BadRequestError, MintError, RateLimitError
from mint.server import limits, resources
from mint.server.catalog import Catalog
from mint.server.operations.holders import Request, hold, known_answer, put_session
from mint.server.operations.kind import parse_object
from mint.server.operations.training import run_id_of
from mint.server.services import Services
from mint.server.uploads.adapter import num_parameters, read_config, write_adapter
from mint.server.uploads.archive import MAX_OTHER_BYTES, unpack
from mint.server.uploads.body import receive
from mint.server.uploads.optimizer import write_optimizer
from mint.server.uploads.tensors import MAX_HEADER_BYTES
from mint.store import audit, files
from mint.store.keys import Key
from mint.store.schema import Checkpoint, CheckpointKind
from mint.wire.paths import CheckpointPath, Segment
from mint.wire.rest import UploadRequest

KIND = "upload_checkpoint"

CHECKS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="uploads")
"""One at a time: a check takes a core and reads all of a checkpoint, and nobody waits for it but who uploads."""

MAX_CONFIG_BYTES = 1 << 20
MAX_AT_ONCE = 4
"""Uploads of one owner: what comes in takes room on the disk before anything of it counts."""


@dataclass(frozen=True)
class Committed:
    """An upload that is a checkpoint's folder, and has no name yet."""

    directory: str
    base_model: str
    shape: LoraShape
    kind: CheckpointKind
    size_bytes: int
    weights_sha256: str


async def upload(services: Services, http: HttpRequest, caller: Key, key: str | None) -> dict[str, Any]:
    """Take in an upload, or answer what the first try with this idempotency key was answered.

    Raises:
        BadRequestError: it is no checkpoint of a model that is served; the message names the file and what is wrong.
        TooLargeError: no checkpoint is so large here.
        LimitExceededError: the caller has too many bytes.
        RateLimitError: the caller has too many uploads under way.
    """
    services.check_accepting()
    await services.database.transaction(lambda c: limits.check_stored_bytes(c, caller))
    # nothing is awaited between this and counting one more
    if services.uploads[caller.owner] >= MAX_AT_ONCE:
        raise RateLimitError(f"{MAX_AT_ONCE} uploads of yours are under way; send this one when one has ended")
    store, directory = services.catalog.store, f"upload-{token_hex(12)}"
    try:
        with services.uploads.one(caller.owner):
            request, made = await _receive(services, http, directory)
    except OSError as error:
        raise MintError(f"the upload could not be written: {error.strerror}") from error
    try:
        answer = await services.database.transaction(partial(_name, request=request, key=key, caller=caller, made=made))
    except MintError:
        await asyncio.to_thread(store.remove, directory)
        raise
    if answer.pop("directory") != directory:  # a retry: there is a checkpoint already
        await asyncio.to_thread(store.remove, directory)
    return answer


async def _receive(services: Services, http: HttpRequest, directory: str) -> tuple[UploadRequest, Committed]:
    """Take a form in and commit the checkpoint in it."""
    services.config.upload_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=services.config.upload_dir) as folder:
        wanted = _sizes(services.fleet.models())
        fields = await receive(http, Path(folder) / "archive", sum(wanted.values()) + MAX_OTHER_BYTES)
        request = parse_object(UploadRequest, fields)
        work = partial(_commit, services.catalog, request.base_model, Path(folder), wanted, directory)
        return request, await asyncio.get_running_loop().run_in_executor(CHECKS, work)


def _sizes(models: Sequence[ModelInfo]) -> dict[str, int]:
    """How many bytes a checkpoint's files can have, at the largest rank of the largest model."""
    largest = max(num_parameters(model.lora_sites, model.max_lora_rank) for model in models)
    return {
        CONFIG_FILE: MAX_CONFIG_BYTES,
        WEIGHTS_FILE: 4 * largest + MAX_HEADER_BYTES,
        OPTIMIZER_FILE: 8 * largest + MAX_HEADER_BYTES,
    }


def _commit(
    catalog: Catalog, base_model: str | None, folder: Path, wanted: dict[str, int], directory: str
) -> Committed:
    """Make a checkpoint folder of `archive` in `folder`."""
    with (folder / "archive").open("rb") as archive:
        found = unpack(archive, folder, wanted)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in found:
            raise BadRequestError(f"has no {name}", field="file")
    config = read_config(folder)
    base_model = base_model or config.base_model
    if base_model is None:
        raise BadRequestError(f"is missing: {CONFIG_FILE} names none", field="base_model")
    model = catalog.model(base_model)
    staged = catalog.checkpoint_dir / f"{directory}{files.STAGED}"
    staged.mkdir(parents=True)
    try:
        shape, sites = write_adapter(folder, staged, config, model)
        if OPTIMIZER_FILE in found:
            write_optimizer(folder, staged, num_parameters(sites, shape.rank))
        catalog.store.commit(directory)
    except BaseException:
        with suppress(OSError):
            rmtree(staged)
        raise
    entries = files.read_manifest(catalog.checkpoint_dir / directory)
    kind = CheckpointKind.TRAINING if OPTIMIZER_FILE in found else CheckpointKind.SAMPLER
    size = sum(entry.size for entry in entries.values())
    return Committed(directory, model.name, shape, kind, size, entries[WEIGHTS_FILE].sha256)


def _name(
    connection: Connection, request: UploadRequest, key: str | None, caller: Key, made: Committed
) -> dict[str, Any]:
    """Give the folder a name; the answer says which folder has it, which of a retry is the first try's."""
    asked = Request(KIND, {**request.model_dump(), "sha256": made.weights_sha256}, key)
    project = request.project_id or resources.DEFAULT_PROJECT
    session = put_session(connection, asked, caller.owner, project, "holds an uploaded checkpoint")
    run_id = run_id_of(session.session_id, 0)
    if (known := known_answer(connection, asked, run_id, "X-Idempotency-Key")) is not None:
        return known
    limits.check_stored_bytes(connection, caller, made.size_bytes)
    segment: Segment = "weights" if made.kind == CheckpointKind.TRAINING else "sampler_weights"
    path, now = str(CheckpointPath(run_id, segment, request.name)), time()
    checkpoint = Checkpoint(
        checkpoint_id=made.directory,
        path=path,
        kind=made.kind,
        run_id=run_id,
        owner=caller.owner,
        base_model=made.base_model,
        lora_rank=made.shape.rank,
        train_attn=made.shape.train_attn,
        train_mlp=made.shape.train_mlp,
        train_unembed=made.shape.train_unembed,
        directory=made.directory,
        size_bytes=made.size_bytes,
        created_at=now,
        expires_at=now + request.ttl_seconds if request.ttl_seconds is not None else None,
    )
    answer = {"path": path, "checkpoint_id": f"{segment}/{request.name}", "size_bytes": made.size_bytes}
    answer |= {"type": KIND, "directory": made.directory}
    hold(connection, asked, checkpoint, session, answer)
    audit.record(connection, "checkpoint_upload", caller.owner, path=path, size_bytes=made.size_bytes)
    return answer
