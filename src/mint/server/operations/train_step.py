"""train_step: a pass and the optimizer step that applies it, as one operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from typing_extensions import override

from mint.engine.core import Result, TrainStep
from mint.errors import BadRequestError
from mint.server.catalog import Catalog
from mint.server.operations.kind import Completion, Kind, parse_object
from mint.server.operations.optimizers import adam_params
from mint.server.operations.training import Pass
from mint.store.schema import Operation
from mint.wire.passes import PassRequest, pass_from_json, read_json
from mint.wire.requests import OptimizerParams


@dataclass(frozen=True)
class TrainStepRequest:
    """`{forward_backward_input: {data, loss_fn, loss_fn_config}, adam_params, model_id, seq_id}`."""

    forward_backward: PassRequest
    params: OptimizerParams


class TrainStepKind(Kind[TrainStepRequest]):
    """Its pass is resolved, checked and answered as a forward_backward, in JSON; its settings as an optim_step's.

    Metrics are those of the pass and, as `optim/<name>:unique`, those of the step.
    """

    name = "train_step"
    ordered = True
    replayed = True
    reads_images = True

    def __init__(self) -> None:
        self._pass = Pass()

    @override
    def parse(self, body: bytes, content_type: str) -> TrainStepRequest:
        document = read_json(body, content_type)
        if "forward_input" in document:
            raise BadRequestError("has no gradients to step with; send forward_backward_input", field="forward_input")
        return TrainStepRequest(pass_from_json(document), parse_object(OptimizerParams, document))

    @override
    def stream(self, request: TrainStepRequest) -> tuple[str, int | None]:
        return self._pass.stream(request.forward_backward)

    @override
    def resolve(
        self, connection: Connection, catalog: Catalog, request: TrainStepRequest, owner: str
    ) -> dict[str, Any]:
        return self._pass.resolve(connection, catalog, request.forward_backward, owner)

    @override
    def recall(self, connection: Connection, catalog: Catalog, facts: dict[str, Any]) -> dict[str, Any]:
        return self._pass.recall(connection, catalog, facts)

    @override
    def plan(self, catalog: Catalog, operation: Operation, request: TrainStepRequest) -> TrainStep:
        adam = adam_params(request.params)
        return TrainStep(self._pass.plan(catalog, operation, request.forward_backward), adam)

    @override
    def finish(self, catalog: Catalog, operation: Operation, request: TrainStepRequest, result: Result) -> Completion:
        return self._pass.finish(catalog, operation, request.forward_backward, result)
