"""What a finished operation leaves besides its result: usage by the hour, and for a checkpoint an audit entry."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from time import time

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mint.engine.core import (
    ForwardBackward,
    Planned,
    Result,
    ReverseKL,
    Sample,
    SampleBatch,
    Sampled,
    SampledBatch,
    Saved,
    TrainStep,
)
from mint.server.operations.kind import Completion
from mint.server.services import Services
from mint.store import audit, usage
from mint.store.schema import Operation
from mint.store.usage import HOUR, Bucket, Use

logger = logging.getLogger(__name__)


def measured(command: Planned, result: Result) -> dict[Use, int]:
    """What a command has used.

    A pass uses each token of its datums once, also one that several of them begin with; reverse KL those of both its
    models. A prompt is used once, whatever the number of samples.
    """
    match command:
        case ForwardBackward():
            return {Use.TRAINING: _tokens(command)}
        case TrainStep():
            return {Use.TRAINING: _tokens(command.forward_backward)}
        case ReverseKL():
            return {Use.TRAINING: sum(len(datum.student) + len(datum.reference) for datum in command.data)}
        case Sample():
            assert isinstance(result, Sampled)
            used = {
                Use.PREFILL: len(command.prompt) - result.cached_tokens,
                Use.CACHED_PREFILL: result.cached_tokens,
                Use.SAMPLED: sum(len(sequence.tokens) for sequence in result.sequences),
            }
            return {use: count for use, count in used.items() if count}
        case SampleBatch():
            assert isinstance(result, SampledBatch)
            parts = zip(command.samples, result.results, strict=True)
            return dict(sum((Counter(measured(*part)) for part in parts), Counter()))
        case _:
            return {Use.CHECKPOINTS: 1} if isinstance(result, Saved) else {}


def _tokens(command: ForwardBackward) -> int:
    return sum(len(datum.tokens) for datum in command.data)


def accounted(operation: Operation, completion: Completion, used: dict[Use, int]) -> Completion:
    """The completion, which counts what was used in the transaction that makes the result known."""

    def effect(connection: Connection) -> None:
        completion.effect(connection)
        whose = operation.owner, operation.session_id or "", operation.stream, operation.facts["model"]
        _count(connection, whose, used)
        if Use.CHECKPOINTS in used:
            made = {name: value for name, value in json.loads(completion.body).items() if name != "type"}
            run_id = operation.facts.get("run_id", operation.stream)
            audit.record(connection, "checkpoint_save", operation.owner, training_run_id=run_id, **made)

    return replace(completion, effect=effect)


async def count_sample(
    services: Services, stream: str, owner: str, base_model: str, command: Sample, result: Sampled
) -> None:
    """Count a sample that is not journaled, before its caller has it. If the database refuses, that is logged."""
    used = measured(command, result)
    try:
        await services.database.transaction(lambda c: _count(c, (owner, "", stream, base_model), used))
    except SQLAlchemyError:
        logger.exception("what %s used cannot be counted: %s", owner, used)
    for use, quantity in used.items():
        services.metrics.tokens(use, quantity)


def _count(connection: Connection, whose: tuple[str, str, str, str], used: dict[Use, int]) -> None:
    """Add to this hour's buckets; `whose` is owner, session, stream and base model."""
    hour = int(time()) // HOUR * HOUR
    for use, quantity in used.items():
        usage.add(connection, Bucket(hour, *whose, use), quantity)
