"""save_and_create: weights saved for sampling and a sampling session of them, in one operation.

With a name they are a checkpoint; without, a revision that lives and dies with the run's session.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from time import time
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import ExportRevision, Result
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, parse_json
from mint.server.operations.weights import (
    checkpoint_row,
    put,
    refuse_taken,
    run_facts,
    sampler_id_of,
    staging_folder,
)
from mint.store import repository
from mint.store.schema import Operation, Sampler
from mint.wire.paths import CheckpointPath
from mint.wire.requests import SaveAndCreateRequest


class SaveAndCreate(Kind[SaveAndCreateRequest]):
    """Save weights and sample them."""

    name = "save_and_create"
    ordered = True
    replayed = False
    saves = True

    @override
    def parse(self, body: bytes, content_type: str) -> SaveAndCreateRequest:
        return parse_json(SaveAndCreateRequest, body)

    @override
    def stream(self, request: SaveAndCreateRequest) -> tuple[str, int | None]:
        return request.model_id, request.seq_id

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: SaveAndCreateRequest, owner: str
    ) -> dict[str, Any]:
        run = access.run(connection, request.model_id, owner)
        if request.name is not None:
            refuse_taken(connection, _path(request, request.name))
        return {**run_facts(run), "session_id": run.session_id}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SaveAndCreateRequest) -> ExportRevision:
        return ExportRevision(request.model_id, staging_folder(catalog, operation), key=operation.request_id)

    @override
    def finish(
        self, catalog: Catalog, operation: Operation, request: SaveAndCreateRequest, result: Result
    ) -> Completion:
        path = str(_path(request, request.name)) if request.name is not None else None
        session_id = operation.facts["session_id"]
        checkpoint = checkpoint_row(operation, request, path, result)
        if path is None:
            checkpoint = replace(checkpoint, session_id=session_id)
        number = _session_seq_id(operation)
        sampler = Sampler(
            sampler_id=sampler_id_of(session_id, number),
            session_id=session_id,
            session_seq_id=number,
            owner=operation.owner,
            base_model=operation.facts["model"],
            created_at=time(),
            model_path=path,
            directory=operation.request_id,
        )

        def effect(connection: Connection) -> None:
            put(checkpoint, overwrite=False)(connection)
            if repository.put_sampler(connection, sampler) is not sampler:
                raise BadRequestError(f"{sampler.sampler_id} exists already", field="seq_id")

        answer = {"sampling_session_id": sampler.sampler_id, "path": path, "type": self.name}
        return Completion.json(answer, effect)


def _path(request: SaveAndCreateRequest, name: str) -> CheckpointPath:
    return CheckpointPath(request.model_id, "sampler_weights", name)


def _session_seq_id(operation: Operation) -> int:
    """A number of its session that clients, who count from 0, do not come to."""
    digest = hashlib.sha256(f"{operation.stream}/{operation.seq_id}".encode()).digest()
    return 1 << 52 | int.from_bytes(digest[:6])
