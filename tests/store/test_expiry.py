"""What is deleted after a while, and what must not be."""

from __future__ import annotations

from time import time
from typing import Any

import pytest
from sqlalchemy import Connection, select

from mint.store import checkpoints, expiry, repository
from mint.store.schema import RunSnapshot, Status, operations, runs, samplers, sessions, snapshots

from .conftest import Transact
from .rows import checkpoint, operation, run, sampler, session

OLD, LATE = 10.0, 1000.0
RUN = "s:train:0"


def put_operation(connection: Connection, seq_id: int, **fields: Any) -> None:
    values = {"request_id": f"r-{fields.get('stream', RUN)}-{seq_id}", "stream": RUN, "seq_id": seq_id}
    done = {"status": Status.DONE, "finished_at": OLD, "created_at": OLD, "kind": "optim_step"}
    connection.execute(operations.insert(), vars(operation(**{**values, **done, **fields})))


def left(connection: Connection) -> list[tuple[str, int]]:
    query = select(operations.c.stream, operations.c.seq_id).order_by(operations.c.stream, operations.c.seq_id)
    return [(row[0], row[1]) for row in connection.execute(query)]


@pytest.fixture
def trained(transact: Transact[Any]) -> Transact[Any]:
    """A run with five operations and a snapshot after the third."""

    def fill(connection: Connection) -> None:
        repository.insert(connection, session(session_id="s", last_heartbeat=time()))
        repository.insert(connection, run(run_id=RUN, session_id="s"))
        for seq_id in range(6):
            put_operation(connection, seq_id)
        repository.insert(connection, RunSnapshot(RUN, 3, "f", 1, OLD))

    transact(fill)
    return transact


def test_answers_below_a_snapshot_go(trained: Transact[Any]) -> None:
    def forget(connection: Connection) -> list[tuple[str, int]]:
        put_operation(connection, 0, stream="s:sample:0", kind="sample", request_id="old")
        put_operation(connection, 1, stream="s:sample:0", kind="sample", request_id="new", finished_at=LATE)
        assert expiry.forget_answers(connection, 500.0, ["sample"], 100) == 3
        return left(connection)

    # the first says how the run was made; from the snapshot's own on, recovery and retries need them
    assert trained(forget) == [("s:sample:0", 1), (RUN, 0), (RUN, 3), (RUN, 4), (RUN, 5)]


def test_answers_go_some_at_a_time(trained: Transact[Any]) -> None:
    assert [trained(lambda c: expiry.forget_answers(c, 500.0, [], 1)) for _ in range(3)] == [1, 1, 0]


def over(connection: Connection, now: float = LATE) -> list[str]:
    return expiry.over(connection, finished_before=now - 10, silent_before=now - 100, limit=10)


def test_which_sessions_are_over(transact: Transact[Any]) -> None:
    def fill(connection: Connection) -> list[str]:
        for name, fields in {
            "silent": {"last_heartbeat": 800.0},
            "heard": {"last_heartbeat": 950.0},
            "finished": {"last_heartbeat": 950.0, "finished_at": 970.0},
            "just finished": {"last_heartbeat": 950.0, "finished_at": 995.0},
            "waiting": {"last_heartbeat": 1.0},
            "busy without heartbeats": {"last_heartbeat": 1.0},
            "forgotten": {"last_heartbeat": 1.0, "finished_at": 2.0, "forgotten_at": 3.0},
        }.items():
            repository.insert(connection, session(session_id=name, **fields))
            repository.insert(connection, run(run_id=f"{name}:train:0", session_id=name))
        put_operation(connection, 1, stream="waiting:train:0", status=Status.PENDING, finished_at=None, request_id="a")
        put_operation(connection, 1, stream="busy without heartbeats:train:0", created_at=990.0, request_id="b")
        return over(connection)

    assert transact(fill) == ["silent", "finished"]


def test_a_forgotten_session_lives_as_long_as_its_last_checkpoint(trained: Transact[Any]) -> None:
    def forget(connection: Connection) -> None:
        repository.insert(connection, run(run_id="s:train:1", session_id="s"))
        repository.insert(connection, sampler(sampler_id="s:sample:0", session_id="s", session_seq_id=0))
        checkpoints.put(connection, checkpoint(run_id=RUN))
        assert expiry.forget_operations(connection, "s", 100) == 6
        expiry.drop_snapshots(connection, [RUN])
        expiry.forget_session(connection, "s")

    def rows(connection: Connection) -> list[list[str]]:
        tables = (sessions, runs, samplers, snapshots, operations)
        return [[str(row[0]) for row in connection.execute(table.select())] for table in tables]

    trained(forget)
    assert trained(rows) == [["s"], [RUN], [], [], []]
    assert trained(lambda c: expiry.forget_empty(c, 10)) == 0
    trained(lambda c: checkpoints.remove(c, checkpoint(run_id=RUN)))
    assert trained(lambda c: expiry.forget_empty(c, 10)) == 1
    assert trained(rows) == [[], [], [], [], []]


def test_named_checkpoints_are_counted_as_they_come_and_go(transact: Transact[Any]) -> None:
    def scene(connection: Connection) -> list[int]:
        repository.insert(connection, session(session_id="s"))
        repository.insert(connection, run(run_id=RUN, session_id="s"))
        seen = []
        for name, fields in {
            "a": {},
            "b": {"expires_at": 1.0},
            "c": {"path": None, "session_id": "s"},
            "d": {"expires_at": time() + 1000},
        }.items():
            path = {"path": f"tinker://{RUN}/weights/{name}"}
            checkpoints.put(connection, checkpoint(**{"checkpoint_id": name, "directory": name, **path, **fields}))
            seen.append(checkpoints.count_named(connection, "me"))
        checkpoints.expire(connection, 10)
        seen.append(checkpoints.count_named(connection, "me"))
        again = checkpoint(checkpoint_id="e", directory="e", path=f"tinker://{RUN}/weights/a")
        checkpoints.put(connection, again, overwrite=True)
        seen.append(checkpoints.count_named(connection, "me"))
        checkpoints.remove(connection, again)
        return [*seen, checkpoints.count_named(connection, "me"), checkpoints.count_named(connection, "nobody")]

    assert transact(scene) == [1, 1, 1, 2, 2, 2, 1, 0]
