"""Queries over many rows: the database's own plan says that each is answered from an index.

SQLite, without statistics, supposes that tables are large. PostgreSQL knows that these are small, and is told not to
scan or sort where there is another way. A scan reads `SCAN table`, a sort of what a filter found `TEMP B-TREE`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from time import time
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, select

from mint.store import checkpoints, counts, expiry, journal, listings, repository, search
from mint.store.database import Database
from mint.store.listings import Window
from mint.store.schema import Checkpoint, Session
from mint.store.schema import checkpoints as checkpoint_rows
from mint.store.search import SessionFilter, StatusFilter

from .rows import checkpoint, operation, run, sampler, session

OWNERS = ("me", "you")
RUNS, PER_RUN = 20, 40
WINDOW = Window(10, 300)
REPLAYED = ("load_weights", "train_step")


def fill(connection: Connection) -> None:
    """Some rows of every table."""
    numbers = count()
    for owner in OWNERS:
        repository.insert(connection, session(session_id=owner, owner=owner, last_heartbeat=time(), project_id="p"))
        for run_id in (f"{owner}:train:{number}" for number in range(RUNS)):
            repository.insert(connection, run(run_id=run_id, session_id=owner, owner=owner))
            for seq_id in range(PER_RUN):
                _fill(connection, owner, run_id, seq_id, next(numbers))


def _fill(connection: Connection, owner: str, run_id: str, seq_id: int, number: int) -> None:
    """A checkpoint, a sampler that reads it, and an operation that does."""
    name, now = f"{run_id}-{seq_id}", time()
    path = f"tinker://{run_id}/weights/{seq_id}" if seq_id % 4 else None
    row = checkpoint(
        checkpoint_id=name,
        path=path,
        session_id=owner if path is None else None,
        run_id=run_id,
        owner=owner,
        directory=name,
        created_at=now + seq_id,
        expires_at=now + seq_id if seq_id % 2 else None,
        public=run_id.endswith(":0") and seq_id == 1,
    )
    mine = sampler(
        sampler_id=name, session_id=owner, session_seq_id=number, owner=owner, directory=name, model_path=path
    )
    repository.insert(connection, row)
    repository.insert(connection, mine)
    journal.insert(connection, operation(request_id=name, stream=run_id, seq_id=seq_id, owner=owner, directory=name))


UNREAD = checkpoint(owner="me", directory="nobody's")
AFTER = Session("me", "me", 5.0, 5.0)
QUERIES: dict[str, Callable[[Connection], object]] = {
    "find": lambda c: checkpoints.live(c, "tinker://me:train:3/weights/5"),
    "page of an owner": partial(listings.checkpoints_of_owner, owner="me", window=WINDOW),
    "of a run": partial(listings.checkpoints_of_run, run_id="me:train:3", public=False),
    "published of a run": partial(listings.checkpoints_of_run, run_id="me:train:3", public=True),
    "a run's newest": lambda c: listings.view(c, run(run_id="me:train:3"), public=False),
    "runs of an owner": partial(listings.runs_of_owner, owner="me", window=WINDOW),
    "runs that others share": partial(listings.runs_of_owner, owner="me", window=WINDOW, accessible=True),
    "runs of a project": partial(listings.runs_of_owner, owner="me", window=WINDOW, project_id="p"),
    "live runs": partial(listings.live_runs, owner="me", heard_since=0.0, window=WINDOW),
    "sessions": partial(listings.session_ids_of_owner, owner="me", window=WINDOW),
    "search": lambda c: search.search(c, SessionFilter("me", 0.0, statuses=[StatusFilter("active")]), 10, AFTER),
    "search in a project": lambda c: search.search(c, SessionFilter("me", 0.0, project_ids=["p"]), 10, None),
    "expire": partial(checkpoints.expire, limit=10),
    "forget": partial(checkpoints.forget_unnamed, session_id="me", limit=10),
    "bytes of an owner": partial(counts.stored_bytes, owner="me"),
    "readers": lambda c: checkpoints.reader(c, UNREAD, REPLAYED, 0.0),
    "last name": lambda c: (checkpoints.shared(c, UNREAD), checkpoints.remove(c, UNREAD)),
    "deletable": partial(checkpoints.deletable, replayed=REPLAYED, held={"a"}, limit=10),
    "old answers": partial(expiry.forget_answers, before=2.0, independent=["sample"], limit=10),
    "sessions that are over": partial(expiry.over, finished_before=2.0, silent_before=1.0, limit=10),
    "operations of a session": partial(expiry.forget_operations, session_id="me", limit=10),
    "empty sessions": partial(expiry.forget_empty, limit=10),
    "which folders are known": partial(checkpoints.accounted_for, directories=["a", "b"]),
}
SORTS = {"of a run", "published of a run", "runs that others share", "deletable", "empty sessions"}
"""Where a filter that leaves few rows comes before their order."""


def plans(connection: Connection, work: Callable[[Connection], object]) -> list[str]:
    """What the database says about each SELECT that `work` makes; what it changes is undone."""
    made: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        made.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", note)
    with connection.begin_nested() as attempt:
        work(connection)
        attempt.rollback()
    event.remove(connection, "before_cursor_execute", note)
    selects = [(statement, parameters) for statement, parameters in made if statement.startswith("SELECT")]
    assert selects
    explain = _sqlite if connection.dialect.name == "sqlite" else _postgresql
    return [step for statement, parameters in selects for step in explain(connection, statement, parameters)]


def _sqlite(connection: Connection, statement: str, parameters: Any) -> list[str]:
    return [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]


AVOIDED = ("seqscan", "sort", "bitmapscan", "mergejoin", "hashjoin", "material")
LEADING = """
    SELECT indexrelid::regclass::text, attname FROM pg_index
    JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
"""


def _postgresql(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """In the words of SQLite."""
    leading = dict(tuple(row) for row in connection.exec_driver_sql(LEADING))
    for way in AVOIDED:
        connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
    ((plan,),) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
    return list(_steps(plan[0]["Plan"], leading))


def _steps(node: dict[str, Any], leading: dict[str, str]) -> Iterator[str]:
    """An index of which the first column is not asked for is scanned from end to end."""
    kind, index = node["Node Type"], node.get("Index Name")
    words = {"Seq Scan": "SCAN", "Sort": "TEMP B-TREE", "Index Only Scan": "COVERING"}
    whole = index is not None and leading[index] not in node.get("Index Cond", "")
    where = f" USING INDEX {index}" if index is not None else ""
    yield f"{'SCAN' if whole else words.get(kind, kind)} {node.get('Relation Name', '')}{where}"
    for child in node.get("Plans", ()):
        yield from _steps(child, leading)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A transaction over some rows of every table."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('filled')}/mint.db"
    else:
        url = request.getfixturevalue("cluster").database()
    database = Database(url)
    asyncio.run(database.transaction(fill))
    database.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_answered_from_an_index(filled: Connection, name: str) -> None:
    steps = plans(filled, QUERIES[name])
    # all that is published or forgotten is looked at; what is discarded is deleted in the next minute; a sum is over
    # what was found
    whole = "checkpoints USING INDEX checkpoints_published", "sessions USING INDEX sessions_forgotten"
    allowed = ("SCAN CONSTANT ROW", "SCAN discarded_folders", *(f"SCAN {index}" for index in whole), "SCAN anon_")
    assert not [step for step in steps if step.startswith("SCAN") and not step.startswith(allowed)], steps
    assert name in SORTS or not [step for step in steps if "TEMP B-TREE" in step], steps


def test_a_list_is_counted_without_counting(filled: Connection) -> None:
    """But for what has expired and is still there, which the sweeper takes away every minute."""
    steps = plans(filled, QUERIES["page of an owner"])
    used = [step.partition(" USING INDEX ")[2].partition(" ")[0] for step in steps if " USING INDEX " in step]
    assert used[0::2] == ["checkpoints_listed", "checkpoints_expiring_of_owner"], steps
    assert used[1] in {"sqlite_autoindex_named_checkpoints_1", "named_checkpoints_pkey"}, steps
    assert not [step for step in steps if step.startswith("SCAN")]


def test_a_scan_would_be_seen(filled: Connection) -> None:
    steps = plans(filled, lambda c: repository.find(c, Checkpoint, size_bytes=3))
    assert [step.partition(" USING")[0] for step in steps] == ["SCAN checkpoints"]


def test_a_sort_would_be_seen(filled: Connection) -> None:
    query = select(checkpoint_rows).order_by(checkpoint_rows.c.base_model)
    assert any("TEMP B-TREE" in step for step in plans(filled, lambda c: c.execute(query)))
