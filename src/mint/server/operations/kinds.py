"""All kinds of operations, by the name that the journal has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from mint.server.catalog import Catalog
from mint.server.operations.acting import Act, ActBatch, VlaTrainStep
from mint.server.operations.distillation import ReverseKLPass
from mint.server.operations.external import SaveExternal
from mint.server.operations.interpolation import Interpolation
from mint.server.operations.kind import Kind
from mint.server.operations.loading import LoadWeights
from mint.server.operations.sampling import AsyncSample
from mint.server.operations.save_and_create import SaveAndCreate
from mint.server.operations.train_step import TrainStepKind
from mint.server.operations.training import CreateModel, ForwardPass, OptimizerStep, Pass
from mint.server.operations.weights import SaveForSampler, SaveWeights
from mint.store.schema import Operation

KINDS: dict[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        CreateModel(),
        Pass(),
        ForwardPass(),
        OptimizerStep(),
        TrainStepKind(),
        ReverseKLPass(),
        SaveWeights(),
        SaveForSampler(),
        SaveExternal(),
        SaveAndCreate(),
        LoadWeights(),
        Interpolation(),
        AsyncSample(),
        VlaTrainStep(),
        Act(),
        ActBatch(),
    )
}

REPLAYED = frozenset(name for name, kind in KINDS.items() if kind.replayed)
"""Kinds that recovery runs again: what they read is kept as long as their run may need it."""


def recalled(connection: Connection, catalog: Catalog, operation: Operation) -> Operation:
    """The operation with what its kind needs for planning beside the facts of the journal."""
    more = KINDS[operation.kind].recall(connection, catalog, operation.facts)
    return replace(operation, facts={**operation.facts, **more}) if more else operation
