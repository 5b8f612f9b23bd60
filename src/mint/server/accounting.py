"""What a finished operation leaves besides its result: usage by the hour, and for a checkpoint an audit entry."""

from __future__ import annotations

import json
from dataclasses import replace
from time import time

from sqlalchemy import Connection

from mint.engine.core import Command, ForwardBackward, Result, ReverseKL, Sample, Sampled, Saved, TrainStep
from mint.server.operations.kind import Completion
from mint.store import audit, repository, usage
from mint.store.schema import Operation, Run, Sampler
from mint.store.usage import HOUR, Bucket, Use


def measured(command: Command, result: Result) -> dict[Use, int]:
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
        case _:
            return {Use.CHECKPOINTS: 1} if isinstance(result, Saved) else {}


def _tokens(command: ForwardBackward) -> int:
    return sum(len(datum.tokens) for datum in command.data)


def accounted(operation: Operation, completion: Completion, used: dict[Use, int]) -> Completion:
    """The completion, which counts what was used in the transaction that makes the result known."""

    def effect(connection: Connection) -> None:
        completion.effect(connection)
        _count(connection, operation, used)
        if Use.CHECKPOINTS in used:
            made = {name: value for name, value in json.loads(completion.body).items() if name != "type"}
            audit.record(connection, "checkpoint_save", operation.owner, training_run_id=operation.stream, **made)

    return replace(completion, effect=effect)


def _count(connection: Connection, operation: Operation, used: dict[Use, int]) -> None:
    session_id = _session(connection, operation.stream) if used else ""
    hour = int(time()) // HOUR * HOUR
    for use, quantity in used.items():
        whose = operation.owner, session_id, operation.stream, operation.facts["model"]
        usage.add(connection, Bucket(hour, *whose, use), quantity)


def _session(connection: Connection, stream: str) -> str:
    """The session that a run or a sampling session belongs to."""
    found = repository.find(connection, Run, run_id=stream) or repository.find(connection, Sampler, sampler_id=stream)
    return found.session_id if found is not None else ""
