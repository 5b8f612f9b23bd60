"""load_weights: a checkpoint's weights, on request with the optimizer's state, into a run or as a new one."""

from __future__ import annotations

from time import time
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import LoadState, RestoreRun, Result
from mint.engine.rollout_correction import parse_rollout_correction
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, parse_json
from mint.server.operations.optimizers import refuse_optimizer
from mint.server.operations.training import run_id_of
from mint.server.operations.weights import SHAPE_FIELDS
from mint.store import repository
from mint.store.schema import Checkpoint, Operation, Run
from mint.wire.paths import CheckpointPath
from mint.wire.requests import LoadWeightsRequest


class LoadWeights(Kind[LoadWeightsRequest]):
    """load_weights: into a run, or as a new run."""

    name = "load_weights"
    ordered = True
    replayed = True

    @override
    def parse(self, body: bytes, content_type: str) -> LoadWeightsRequest:
        request = parse_json(LoadWeightsRequest, body)
        as_new = request.session_id is not None and request.model_seq_id is not None
        if request.in_place == as_new:
            raise BadRequestError("give either model_id and seq_id, or session_id and model_seq_id", field="body")
        return request

    @override
    def journaled(self, request: LoadWeightsRequest, body: bytes) -> bytes:
        """Without the token, which is nobody's to read and not needed again: what it opened is among the facts."""
        if request.weights_access_token is None:
            return body
        return request.model_dump_json(exclude_unset=True, exclude={"weights_access_token"}).encode()

    @override
    def stream(self, request: LoadWeightsRequest) -> tuple[str, int]:
        if request.model_id is not None and request.seq_id is not None:
            return request.model_id, request.seq_id
        assert request.session_id is not None
        assert request.model_seq_id is not None
        return run_id_of(request.session_id, request.model_seq_id), 0

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: LoadWeightsRequest, owner: str
    ) -> dict[str, Any]:
        path = CheckpointPath.parse(access.canonical(connection, request.path, "weights"), "path")
        checkpoint = access.weights(connection, str(path), owner, "path", request.weights_access_token)
        if request.optimizer and path.segment != "weights":
            raise BadRequestError(f"{path} holds weights for sampling only, without optimizer state", field="optimizer")
        facts = {
            "model": checkpoint.base_model,
            "directory": checkpoint.directory,
            **{name: getattr(checkpoint, name) for name in SHAPE_FIELDS},
        }
        run_id, _ = self.stream(request)
        if request.in_place:
            _refuse_misfit(access.run(connection, run_id, owner), checkpoint)
            if request.rollout_correction_config is not None:
                raise BadRequestError("is settled when a run is made", field="rollout_correction_config")
            return facts
        assert request.session_id is not None
        access.session(connection, request.session_id, owner)
        if request.base_model is not None and request.base_model != checkpoint.base_model:
            raise BadRequestError(
                f"is {request.base_model!r}, but {path} was trained on {checkpoint.base_model!r}",
                field="base_model",
            )
        refuse_optimizer(request.optimizer_config)
        return {**facts, "rollout_correction": _rollout_correction(connection, request, checkpoint)}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: LoadWeightsRequest) -> LoadState | RestoreRun:
        catalog.store.check(operation.facts["directory"], request.path, "path")
        directory = catalog.checkpoint_dir / operation.facts["directory"]
        command = LoadState if request.in_place else RestoreRun
        return command(operation.stream, directory, request.optimizer)

    @override
    def record(self, connection: Connection, operation: Operation, request: LoadWeightsRequest) -> None:
        if request.in_place:
            return
        assert request.session_id is not None
        facts = operation.facts
        run = Run(
            run_id=operation.stream,
            session_id=request.session_id,
            owner=operation.owner,
            base_model=facts["model"],
            **{name: facts[name] for name in SHAPE_FIELDS},
            lora_seed=None,
            created_at=time(),
            user_metadata=request.user_metadata,
            rollout_correction=facts["rollout_correction"],
        )
        repository.insert(connection, run)

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: LoadWeightsRequest, result: Result) -> Completion:
        return Completion.json({"path": request.path, "model_id": operation.stream, "type": "load_weights"})


def _rollout_correction(
    connection: Connection, request: LoadWeightsRequest, checkpoint: Checkpoint
) -> dict[str, Any] | None:
    """Of a new run: what the request says, or else what the checkpoint's run has."""
    if "rollout_correction_config" not in request.model_fields_set:
        trained = repository.find(connection, Run, run_id=checkpoint.run_id)
        return trained.rollout_correction if trained is not None else None
    if request.rollout_correction_config is not None:
        parse_rollout_correction(request.rollout_correction_config)
    return request.rollout_correction_config


def _refuse_misfit(run: Run, checkpoint: Checkpoint) -> None:
    """A run keeps its base model and LoRA shape for life."""
    for name in ("base_model", *SHAPE_FIELDS):
        mine, theirs = getattr(run, name), getattr(checkpoint, name)
        if mine != theirs:
            raise BadRequestError(f"{checkpoint.path} has {name} {theirs}, the run has {mine}", field="path")
