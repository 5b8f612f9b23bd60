"""forward_backward_reverse_kl: gradients that draw a run towards a reference model."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import Distilled, Result, ReverseKL, ReverseKLDatum, Revision
from mint.engine.reverse_kl_spec import check_reverse_kl
from mint.errors import BadRequestError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, expect
from mint.store.schema import Operation, Run
from mint.wire.distillation import DistillationRequest, decode_distillation, distillation_output
from mint.wire.paths import CheckpointPath

FIELD = "reference_model_path"


class ReverseKLPass(Kind[DistillationRequest]):
    """Reverse KL to a checkpoint or the base model; gradients add up with those of other passes."""

    name = "forward_backward_reverse_kl"
    ordered = True
    replayed = True

    @override
    def parse(self, body: bytes, content_type: str) -> DistillationRequest:
        return decode_distillation(body, content_type)

    @override
    def stream(self, request: DistillationRequest) -> tuple[str, int | None]:
        return request.model_id, request.seq_id

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: DistillationRequest, owner: str
    ) -> dict[str, Any]:
        run = access.run(connection, request.model_id, owner)
        return {"model": run.base_model, "reference": _reference(connection, request, run, owner)}

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: DistillationRequest) -> ReverseKL:
        folder: str | None = operation.facts["reference"]
        directory = catalog.checkpoint_dir / folder if folder is not None else None
        if folder is not None:
            catalog.store.check(folder, str(request.reference_model_path), FIELD)
        command = ReverseKL(
            request.model_id,
            tuple(ReverseKLDatum(each.student, each.reference, each.targets, each.weights) for each in request.data),
            Revision(folder, directory) if folder is not None and directory is not None else None,
            request.temperature,
        )
        return check_reverse_kl(command, catalog.writer(operation.facts["model"]))

    @override
    def finish(
        self, catalog: Catalog, operation: Operation, request: DistillationRequest, result: Result
    ) -> Completion:
        distilled = expect(result, Distilled)
        return Completion.json(distillation_output(distilled.losses, distilled.metrics))


def _reference(connection: Connection, request: DistillationRequest, run: Run, owner: str) -> str | None:
    """The folder of the reference's weights; None is the base model."""
    name = request.reference_model_path
    if name is None or name == run.base_model:
        return None
    if "://" not in name:
        raise BadRequestError(
            f"{name!r} is neither a checkpoint's path nor {run.base_model!r}, the run's base model", field=FIELD
        )
    path = str(CheckpointPath.parse(access.canonical(connection, name, "weights"), FIELD))
    checkpoint = access.weights(connection, path, owner, FIELD)
    if checkpoint.base_model != run.base_model:
        raise BadRequestError(
            f"{path} was trained on {checkpoint.base_model!r}, the run is on {run.base_model!r}", field=FIELD
        )
    return checkpoint.directory
