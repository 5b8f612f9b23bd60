"""Operations that save a run's weights: save_weights, save_weights_for_sampler; and what all that save have in common.

The worker writes into a staging folder. When it is done, the folder gets its manifest and its final name, which no
other checkpoint ever has; then the row that makes it visible is committed together with the operation's result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any, TypeAlias

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import ExportRevision, Result, Saved, SaveState
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, expect, parse_json
from mint.store import checkpoints, files, repository
from mint.store.schema import Checkpoint, CheckpointKind, Operation, Run, Sampler
from mint.wire.paths import CheckpointPath, Segment
from mint.wire.requests import (
    SaveAndCreateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
)
from mint.wire.rest import InterpolateRequest

SaveRequest: TypeAlias = (
    SaveWeightsRequest
    | SaveWeightsForSamplerRequest
    | SaveWeightsExternalRequest
    | SaveAndCreateRequest
    | InterpolateRequest
)

SHAPE_FIELDS = ("lora_rank", "train_attn", "train_mlp", "train_unembed")


def staging_folder(catalog: Catalog, operation: Operation) -> Path:
    """Where the worker writes, until all is written."""
    return catalog.checkpoint_dir / f"{operation.request_id}{files.STAGED}"


def run_facts(run: Run) -> dict[str, Any]:
    """What a save of a run needs to know of it later."""
    return {"model": run.base_model, **{name: getattr(run, name) for name in SHAPE_FIELDS}}


def checkpoint_row(operation: Operation, request: SaveRequest, path: str | None, result: Result) -> Checkpoint:
    """The row that makes a save visible."""
    facts = operation.facts
    return Checkpoint(
        checkpoint_id=operation.request_id,
        path=path,
        kind=_kind_of(request),
        run_id=operation.stream,
        owner=operation.owner,
        base_model=facts["model"],
        **{name: facts[name] for name in SHAPE_FIELDS},
        directory=operation.request_id,
        size_bytes=expect(result, Saved).size_bytes,
        created_at=time(),
        expires_at=time() + request.ttl_seconds if request.ttl_seconds is not None else None,
        user_metadata=request.user_metadata,
    )


def _kind_of(request: SaveRequest) -> CheckpointKind:
    match request:
        case SaveWeightsRequest():
            return CheckpointKind.TRAINING
        case SaveWeightsExternalRequest():
            return CheckpointKind.EXTERNAL
        case _:
            return CheckpointKind.SAMPLER


def refuse_taken(connection: Connection, path: CheckpointPath) -> None:
    """A name is given once.

    Raises:
        BadRequestError: the path is that of a checkpoint.
    """
    if checkpoints.live(connection, str(path)) is not None:
        raise BadRequestError(f"{path} exists; save under another name or with overwrite", field="path")


def put(checkpoint: Checkpoint, *, overwrite: bool) -> Callable[[Connection], None]:
    """What adds the row when the save has its result."""

    def effect(connection: Connection) -> None:
        if not checkpoints.put(connection, checkpoint, overwrite=overwrite):
            raise BadRequestError(f"{checkpoint.path} was saved in the meantime", field="path")

    return effect


class SaveWeights(Kind[SaveWeightsRequest]):
    """save_weights: a training checkpoint with the optimizer's state."""

    name = "save_weights"
    ordered = True
    replayed = False
    saves = True
    segment: Segment = "weights"

    @override
    def parse(self, body: bytes, content_type: str) -> SaveWeightsRequest:
        return parse_json(SaveWeightsRequest, body)

    @override
    def stream(self, request: SaveWeightsRequest) -> tuple[str, int]:
        return request.model_id, request.seq_id

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: SaveWeightsRequest, owner: str
    ) -> dict[str, Any]:
        run = access.run(connection, request.model_id, owner)
        if not request.overwrite:
            refuse_taken(connection, CheckpointPath(run.run_id, self.segment, request.path))
        return run_facts(run)

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SaveWeightsRequest) -> SaveState:
        return SaveState(request.model_id, staging_folder(catalog, operation))

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: SaveWeightsRequest, result: Result) -> Completion:
        path = str(CheckpointPath(request.model_id, self.segment, request.path))
        checkpoint = checkpoint_row(operation, request, path, result)
        return Completion.json({"path": path, "type": "save_weights"}, put(checkpoint, overwrite=request.overwrite))


class SaveForSampler(Kind[SaveWeightsForSamplerRequest]):
    """save_weights_for_sampler: a named revision, or without a name a sampling session of its own.

    All inflight sampling sessions of a run sample the revision that was saved last for one of them.
    """

    name = "save_weights_for_sampler"
    ordered = True
    replayed = False
    saves = True
    segment: Segment = "sampler_weights"

    @override
    def parse(self, body: bytes, content_type: str) -> SaveWeightsForSamplerRequest:
        request = parse_json(SaveWeightsForSamplerRequest, body)
        if (request.path is None) == (request.sampling_session_seq_id is None):
            raise BadRequestError("give either a path or a sampling_session_seq_id", field="path")
        if request.kind == "inflight" and request.path is not None:
            raise BadRequestError("is 'inflight', which has no path; a path names a snapshot", field="kind")
        return request

    @override
    def stream(self, request: SaveWeightsForSamplerRequest) -> tuple[str, int]:
        return request.model_id, request.seq_id

    @override
    def resolve(
        self,
        connection: Connection,
        catalog: Catalog,
        request: SaveWeightsForSamplerRequest,
        owner: str,
    ) -> dict[str, Any]:
        run = access.run(connection, request.model_id, owner)
        if request.path is not None:
            refuse_taken(connection, CheckpointPath(run.run_id, self.segment, request.path))
        return {**run_facts(run), "session_id": run.session_id}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: SaveWeightsForSamplerRequest) -> ExportRevision:
        folder = staging_folder(catalog, operation)
        return ExportRevision(request.model_id, folder, key=operation.request_id)

    @override
    def finish(
        self, catalog: Catalog, operation: Operation, request: SaveWeightsForSamplerRequest, result: Result
    ) -> Completion:
        if request.path is not None:
            path = str(CheckpointPath(request.model_id, self.segment, request.path))
            checkpoint = checkpoint_row(operation, request, path, result)
            return Completion.json({"path": path}, put(checkpoint, overwrite=False))
        sampler = self._sampler(operation, request)
        checkpoint = replace(checkpoint_row(operation, request, None, result), session_id=sampler.session_id)

        def effect(connection: Connection) -> None:
            put(checkpoint, overwrite=False)(connection)
            if repository.put_sampler(connection, sampler).directory != sampler.directory:
                raise BadRequestError(f"{sampler.sampler_id} exists already", field="sampling_session_seq_id")
            if request.kind == "inflight":
                repository.follow(connection, operation.stream, operation.seq_id, operation.request_id)

        return Completion.json({"sampling_session_id": sampler.sampler_id}, effect)

    def _sampler(self, operation: Operation, request: SaveWeightsForSamplerRequest) -> Sampler:
        assert request.sampling_session_seq_id is not None
        session_id = operation.facts["session_id"]
        return Sampler(
            sampler_id=sampler_id_of(session_id, request.sampling_session_seq_id),
            session_id=session_id,
            session_seq_id=request.sampling_session_seq_id,
            owner=operation.owner,
            base_model=operation.facts["model"],
            created_at=time(),
            directory=operation.request_id,
            inflight_run_id=operation.stream if request.kind == "inflight" else None,
            inflight_seq_id=operation.seq_id if request.kind == "inflight" else None,
        )


def sampler_id_of(session_id: str, session_seq_id: int) -> str:
    """The same number of the same session is the same sampler."""
    return f"{session_id}:sample:{session_seq_id}"
