"""interpolate: a checkpoint whose ΔW is the weighted sum of others'.

It belongs to no run's stream. The result is saved in a run of the caller's, if the request names one, and otherwise in
a run of its own that nothing else is done with, as a copy is. A source that is deleted meanwhile is still read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from secrets import token_hex
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import Interpolate, Result, WeightedRevision
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.holders import finished_session, holding_run
from mint.server.operations.kind import Completion, Kind, parse_json
from mint.server.operations.training import run_id_of
from mint.server.operations.weights import SHAPE_FIELDS, checkpoint_row, put, staging_folder
from mint.server.resources import DEFAULT_PROJECT
from mint.store import checkpoints, repository
from mint.store.schema import Checkpoint, CheckpointKind, Operation, Run
from mint.wire.paths import CheckpointPath, Segment
from mint.wire.rest import InterpolateRequest

SEGMENT: Segment = "sampler_weights"
DEFAULT_NAME = "interpolated"
FLAGS = SHAPE_FIELDS[1:]
ANSWER_TYPE = "mint_interpolate_checkpoints"
"""As published clients expect it."""


class Interpolation(Kind[InterpolateRequest]):
    """Interpolation of checkpoints.

    Args:
        key: what tells a retry; without one, every request is another.
    """

    name = "interpolate"
    ordered = False
    replayed = False
    saves = True

    def __init__(self, key: str | None = None) -> None:
        self._key = key

    @override
    def parse(self, body: bytes, content_type: str) -> InterpolateRequest:
        request = parse_json(InterpolateRequest, body)
        counts = len(request.source_paths), len(request.coefficients)
        if counts[0] != counts[1]:
            raise BadRequestError(f"are {counts[1]}, and source_paths {counts[0]}", field="coefficients")
        return request

    @override
    def stream(self, request: InterpolateRequest) -> tuple[str, int]:
        return f"{self.name}-{self._key or token_hex(16)}", 0

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: InterpolateRequest, owner: str
    ) -> dict[str, Any]:
        found = _sources(connection, request, owner)
        weighted = _weighted(found, request.coefficients)
        summed = [source for source in found if source.directory in weighted]
        rank = sum({source.directory: source.lora_rank for source in summed}.values())
        model = catalog.model(found[0].base_model)
        if rank > model.max_lora_rank:
            raise BadRequestError(
                f"have rank {rank} in sum, which an exact result needs; this server takes at most "
                f"{model.max_lora_rank} (`mint serve --max-lora-rank`)",
                field="source_paths",
            )
        return {
            "model": model.name,
            "source_paths": [source.path for source in found],
            "weighted": weighted,
            "lora_rank": rank,
            **{name: any(getattr(source, name) for source in summed) for name in FLAGS},
            **_place(connection, request, owner, model.name),
        }

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: InterpolateRequest) -> Interpolate:
        root, weighted = catalog.checkpoint_dir, operation.facts["weighted"]
        for directory in weighted:
            catalog.store.check(directory, f"the checkpoint in {directory}", "source_paths")
        sources = tuple(WeightedRevision(root / directory, factor) for directory, factor in weighted.items())
        return Interpolate(sources, staging_folder(catalog, operation))

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: InterpolateRequest, result: Result) -> Completion:
        facts = operation.facts
        checkpoint = replace(checkpoint_row(operation, request, facts["path"], result), run_id=facts["run_id"])

        def effect(connection: Connection) -> None:
            if (session_id := facts["session_id"]) is not None:
                detail = "holds interpolated weights"
                session = finished_session(session_id, operation.owner, DEFAULT_PROJECT, detail)
                repository.insert(connection, session)
                repository.insert(connection, holding_run(checkpoint, session_id))
            put(checkpoint, overwrite=False)(connection)

        answer = {
            "path": checkpoint.path,
            "checkpoint_type": CheckpointKind.SAMPLER,
            "source_paths": facts["source_paths"],
            "coefficients": request.coefficients,
            "has_rank_shards": False,
            "type": ANSWER_TYPE,
        }
        return Completion.json(answer, effect)


def _sources(connection: Connection, request: InterpolateRequest, owner: str) -> list[Checkpoint]:
    """The checkpoints, which may be another's, and must be of one base model."""
    found: list[Checkpoint] = []
    for index, text in enumerate(request.source_paths):
        field = f"source_paths[{index}]"
        path = CheckpointPath.parse(access.canonical(connection, text, SEGMENT), field)
        source = access.weights(connection, str(path), owner, field)
        if found and source.base_model != found[0].base_model:
            raise BadRequestError(
                f"was trained on {source.base_model!r}, {found[0].path} on {found[0].base_model!r}", field=field
            )
        found.append(source)
    return found


def _weighted(sources: Sequence[Checkpoint], coefficients: Sequence[float]) -> dict[str, float]:
    """The coefficient of each folder: what is given several times, or copied, counts once with the sum.

    Raises:
        BadRequestError: a sum is not finite, or all of them are 0.
    """
    weighted: dict[str, float] = {}
    for source, coefficient in zip(sources, coefficients, strict=True):
        weighted[source.directory] = weighted.get(source.directory, 0.0) + coefficient
    weighted = {directory: coefficient for directory, coefficient in weighted.items() if coefficient}
    if not all(map(math.isfinite, weighted.values())):
        raise BadRequestError("add up to more than a float has, for one checkpoint", field="coefficients")
    if not weighted:
        raise BadRequestError("add up to 0 for every checkpoint, which is the base model", field="coefficients")
    return weighted


def _place(connection: Connection, request: InterpolateRequest, owner: str, base_model: str) -> dict[str, Any]:
    """Where the result goes: its path and run, and the session that is to be made for it, if one is."""
    output = request.output_path
    if output is None or "://" not in output:
        session_id = f"session-{token_hex(8)}"
        run_id, name = run_id_of(session_id, 0), output if output is not None else DEFAULT_NAME
        return {"path": str(CheckpointPath(run_id, SEGMENT, name)), "run_id": run_id, "session_id": session_id}
    path = CheckpointPath.parse(output, "output_path")
    run = access.owned(repository.find(connection, Run, run_id=path.run_id), owner, "output_path", path.run_id)
    if run.base_model != base_model:
        raise BadRequestError(f"is of a run on {run.base_model!r}, the sources on {base_model!r}", field="output_path")
    if checkpoints.live(connection, str(path)) is not None:
        raise BadRequestError(f"{path} exists; give another name", field="output_path")
    return {"path": str(path), "run_id": run.run_id, "session_id": None}
