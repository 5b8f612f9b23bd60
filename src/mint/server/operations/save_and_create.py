"""sampling_clients/save_and_create: a revision and its sampling session in one round trip."""

from __future__ import annotations

from dataclasses import replace
from time import time
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import ExportRevision, Result
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, parse_json
from mint.server.operations.weights import checkpoint_of, put, refuse_taken, run_facts, sampler_id_of, staging_folder
from mint.store import repository
from mint.store.schema import Operation, Sampler
from mint.wire.paths import CheckpointPath
from mint.wire.requests import SaveAndCreateRequest

FIRST_NUMBER = 1 << 40
"""Sampling sessions that are made here are numbered from here on, far from the numbers that clients count."""


class SaveAndCreate(Kind[SaveAndCreateRequest]):
    """As save_weights_for_sampler, named or not, followed by create_sampling_session."""

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
            refuse_taken(connection, CheckpointPath(run.run_id, "sampler_weights", request.name), "name")
        return {**run_facts(run), "session_id": run.session_id}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SaveAndCreateRequest) -> ExportRevision:
        return ExportRevision(request.model_id, staging_folder(catalog, operation), key=operation.request_id)

    @override
    def finish(
        self, catalog: Catalog, operation: Operation, request: SaveAndCreateRequest, result: Result
    ) -> Completion:
        name = request.name
        path = str(CheckpointPath(request.model_id, "sampler_weights", name)) if name is not None else None
        sampler = _sampler(operation, path)
        checkpoint = checkpoint_of(operation, request, path, result)
        if path is None:  # one without a name lives with its session
            checkpoint = replace(checkpoint, session_id=sampler.session_id)

        def effect(connection: Connection) -> None:
            put(checkpoint, overwrite=False)(connection)
            repository.insert(connection, sampler)

        answer = {"sampling_session_id": sampler.sampler_id, "type": "save_and_create"}
        return Completion.json(answer | ({"path": path} if path is not None else {}), effect)


def _sampler(operation: Operation, path: str | None) -> Sampler:
    session_id = operation.facts["session_id"]
    # a number that follows from the operation: finished again after a crash, it makes the same sampler
    number = FIRST_NUMBER + int(operation.request_id.removeprefix("req-")[:12], 16)
    return Sampler(
        sampler_id=sampler_id_of(session_id, number),
        session_id=session_id,
        session_seq_id=number,
        owner=operation.owner,
        base_model=operation.facts["model"],
        created_at=time(),
        model_path=path,
        directory=operation.request_id,
    )
