"""What holds after every schedule."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import Response
from sqlalchemy import Connection, select

from mint.engine.core import CreateRun, LoadState, RestoreRun
from mint.server.operations.recovery import ServerJournal
from mint.server.routes.futures import retrieve_future
from mint.server.services import Services
from mint.store import files, journal
from mint.store.checkpoints import count_named
from mint.store.schema import (
    Checkpoint,
    Operation,
    Status,
    checkpoints,
    discarded,
    operations,
    runs,
    samplers,
    sessions,
    snapshots,
)
from mint.wire.passes import PROTOBUF
from mint.wire.requests import RetrieveFutureRequest
from mint.wire.samples import PromptPart, encode_sample, sampled_sequence
from tests.simulation.arithmetic import State, draw, fresh, loaded
from tests.simulation.client import DRAWN, PROMPT
from tests.simulation.programs import Draw, Reference, Run, Session, Step, What
from tests.simulation.worker import read_state, train
from tests.simulation.world import Violation, World


def demand(holds: object, what: str, *details: object) -> None:
    if not holds:
        raise Violation(f"{what}: {' '.join(map(str, details))}" if details else what)


async def check_results(world: World, services: Services, sessions: list[Session], gaps: list[tuple[str, int]]) -> None:
    """When all is quiet: what was acknowledged has happened once and in order, and is remembered."""
    demand(not world.faults, "an exception that nobody caught", world.faults)
    for session in sessions:
        for run in session.runs:
            if run.session_id:
                reference = await _check_run(world, services, session, run)
                check_gaps(run, gaps)
                for each in session.draws:
                    if each.of in run.steps:
                        _check_draw(session, each, reference.revisions.get(each.of.number) if each.of else None)
        for each in session.draws:
            if each.of is None:
                _check_draw(session, each, None)
        await _check_retries(services, session)


async def _check_run(world: World, services: Services, session: Session, run: Run) -> Reference:
    rows = {row.seq_id: row for row in world.database.read(lambda c: operations_of(c, run.run_id))}
    reference = Reference(run)
    for step in run.steps:
        row = rows.pop(step.number, None)
        name = f"{run.run_id}/{step.number} {step.what}"
        if step.what != What.MISSING and not session.vanished:
            demand(step.over, "a client that waited has no answer", name)
            demand(row is not None, "is not in the journal", name)
        demand(step.request_id is None or row is not None, "was acknowledged and is lost", name)
        if row is not None:
            _check_answer(name, step, row, reference.apply(step))
    demand(not rows, "operations that nobody sent", run.run_id, sorted(rows))
    await _check_state(world, services, run, reference)
    _check_checkpoints(world, services, run, reference)
    return reference


def _check_answer(name: str, step: Step, row: Operation, due: bytes | str) -> None:
    assert row.result is not None
    if isinstance(due, str):
        demand(row.status == Status.FAILED, "did not fail", name, row.result)
        demand(due in row.result.decode(), "failed otherwise", name, row.result)
    else:
        demand(row.status == Status.DONE, "failed", name, row.result)
        demand(row.result == due, "has another result than undisturbed", name, row.result, due)
    demand(step.answer is None or step.answer == row.result, "was answered otherwise", name, step.answer, row.result)
    demand((step.refusal is not None) <= (step.what == What.REFUSED), "was refused", name, step.refusal)


async def _check_state(world: World, services: Services, run: Run, reference: Reference) -> None:
    """What a recovery would make, and what the worker has."""
    if run.steps[0].request_id is None:
        return
    recovery = ServerJournal(services.database, services.catalog, services.config.snapshot_dir)
    history = await recovery.history(run.run_id)
    state: State | None = None
    for command in history.commands:
        match command:
            case CreateRun(lora=lora):
                state = fresh(lora.seed)
            case RestoreRun(directory=directory, with_optimizer=with_optimizer):
                state = loaded(read_state(directory), with_optimizer=with_optimizer)
            case LoadState(directory=directory, with_optimizer=with_optimizer):
                state = loaded(read_state(directory), with_optimizer=with_optimizer)
            case _:
                assert state is not None
                train(state, command)
    demand(state == reference.state, "would be recovered otherwise", run.run_id, state, reference.state)
    assert world.worker is not None
    there = world.worker.runs.get(run.run_id, reference.state)
    demand(there == reference.state, "the worker's run differs", run.run_id, there, reference.state)


def _check_checkpoints(world: World, services: Services, run: Run, reference: Reference) -> None:
    root = services.catalog.checkpoint_dir
    for row in world.database.read(lambda c: checkpoints_of(c, run.run_id)):
        demand(not files.damaged_files(root / row.directory), "a checkpoint is damaged", row.path, row.directory)
        if row.path in (saved := {run.path("weights", name): state for name, state in reference.saved.items()}):
            there = read_state(root / row.directory)
            demand(there == saved[row.path], "a checkpoint has other contents", row.path, there, saved[row.path])


def check_gaps(run: Run, gaps: list[tuple[str, int]]) -> None:
    """Only for numbers that never came was waited in vain."""
    for run_id, number in gaps:
        if run_id == run.run_id:
            step = run.steps[number] if number < len(run.steps) else None
            unknown = step is None or step.what == What.MISSING or step.request_id is step.refusal is None
            demand(unknown, "was waited for although it had come", run_id, number)


def _check_draw(session: Session, each: Draw, revision: State | None) -> None:
    if each.answer is None:
        demand(session.vanished or (each.of is not None and each.of.refusal), "a sample has no answer", each)
        return
    weights = revision.weights if revision is not None else None
    prompt: Any = SimpleNamespace(tolist=lambda: PROMPT)
    drawn = draw(weights, prompt, each.seed, DRAWN)
    due = encode_sample([sampled_sequence(drawn.tokens, drawn.logprobs, drawn.stop_reason, None)], PromptPart())
    if each.answer != due:
        error = json.loads(each.answer) if each.answer.startswith(b"{") else {}
        allowed = each.cancelled and "cancelled" in error.get("error", "")
        demand(allowed, "a sample has another result than undisturbed", each, error)


async def _check_retries(services: Services, session: Session) -> None:
    """A result can be asked for again."""
    http: Any = SimpleNamespace(headers={"accept": PROTOBUF})
    steps = [step for run in session.runs for step in run.steps]
    for known in (*steps, *session.draws):
        if known.request_id is None or known.answer is None:
            continue
        request = RetrieveFutureRequest(request_id=known.request_id)
        row = await services.database.transaction(lambda c, request_id=known.request_id: journal.find(c, request_id))
        demand(row is not None, "is forgotten", known)
        assert row is not None
        response: Response = await retrieve_future(request, http, services, row.owner)
        demand(response.body == known.answer, "is answered otherwise when asked again", known, response.body)


def operations_of(connection: Connection, stream: str) -> list[Operation]:
    query = select(operations).where(operations.c.stream == stream).order_by(operations.c.seq_id)
    return [Operation(**row._mapping) for row in connection.execute(query)]


def checkpoints_of(connection: Connection, run_id: str) -> list[Checkpoint]:
    query = select(checkpoints).where(checkpoints.c.run_id == run_id)
    return [Checkpoint(**row._mapping) for row in connection.execute(query)]


def check_leftovers(world: World, services: Services) -> None:
    """When all clients have gone for good: nothing is left but named checkpoints, and what leads to them."""
    rows = world.database.read(lambda c: {table.name: c.execute(table.select()).all() for table in LEFT})
    for table in (operations, samplers, snapshots, discarded):
        demand(not rows[table.name], "rows are left over", table.name, rows[table.name])
    holders = {row.run_id for row in rows["checkpoints"]}
    demand({row.run_id for row in rows["runs"]} == holders, "runs without a checkpoint", rows["runs"])
    holders = {row.session_id for row in rows["runs"]}
    demand({row.session_id for row in rows["sessions"]} == holders, "sessions without a run", rows["sessions"])
    directories = {row.directory for row in rows["checkpoints"]}
    demand(names(services.catalog.checkpoint_dir) == directories, "folders are left over or missing")
    demand(not names(services.config.snapshot_dir), "snapshots are left over", names(services.config.snapshot_dir))
    demand(not services.dispatcher.idle(), "runs are left in the dispatcher", services.dispatcher.idle())
    assert world.worker is not None
    demand(not world.worker.runs, "runs are left in the worker", world.worker.runs)
    owners = Counter(row.owner for row in rows["checkpoints"])
    counted = {owner: world.database.read(partial(count_named, owner=owner)) for owner in owners}
    demand(counted == owners, "checkpoints are counted wrong", counted, owners)


LEFT = (operations, samplers, snapshots, discarded, checkpoints, runs, sessions)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
