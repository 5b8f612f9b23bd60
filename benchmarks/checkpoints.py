"""What lists, look-ups and expiry cost with many checkpoints, and whether each path still leads to its files.

    python -m benchmarks.checkpoints [--rows 100000] [--rounds 30] [--out FILE]

Fills a database of its own: half the rows are one owner's, 100 to a run, and every tenth's time has run out. Times are
of one transaction each, as a request makes it, and of the processor in it. Then the files of random checkpoints, found
by their paths, are read and compared by hash; rows share a thousand real folders. Prints a table of medians and one
JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import Connection, func, select

from mint.store import checkpoints, files, listings, repository, search
from mint.store import schema as tables
from mint.store.database import Database
from mint.store.listings import Window
from mint.store.schema import Checkpoint, CheckpointKind, Run, Session
from mint.store.search import SessionFilter, StatusFilter

OWNERS = ("alice", "bob")
PER_RUN, RUNS_PER_SESSION = 100, 10
FOLDERS, AUDITED = 1000, 256
EXPIRING_EVERY = 10
EXPIRE_AT_ONCE = 200
"""As many as the server's sweeper takes away in one transaction."""
BATCH = 10_000
START = 1.6e9
"""When the first checkpoint was saved, in seconds since the epoch."""
console = Console(stderr=True)

SHAPE: dict[str, Any] = {
    "base_model": "base",
    "lora_rank": 8,
    "train_attn": True,
    "train_mlp": True,
    "train_unembed": True,
}


def place(number: int) -> tuple[str, str, str]:
    """Owner, session and run of a checkpoint."""
    run = number // PER_RUN
    session = f"session-{run // RUNS_PER_SESSION:08d}"
    return OWNERS[run // RUNS_PER_SESSION % len(OWNERS)], session, f"{session}:train:{run % RUNS_PER_SESSION}"


def path_of(number: int) -> str:
    return f"tinker://{place(number)[2]}/weights/{number:08d}"


def row(number: int) -> Checkpoint:
    owner, _, run_id = place(number)
    created = START + number
    return Checkpoint(
        checkpoint_id=f"req-{number:024x}",
        path=path_of(number),
        kind=CheckpointKind.TRAINING,
        run_id=run_id,
        owner=owner,
        **SHAPE,
        directory=f"folder-{number % FOLDERS}",
        size_bytes=4096,
        created_at=created,
        expires_at=created if number % EXPIRING_EVERY == 0 else None,
    )


def owners_rows(numbers: range) -> Iterator[tuple[Session | None, Run | None]]:
    """Sessions and runs that begin with one of some checkpoints."""
    for number in numbers[::PER_RUN]:
        owner, session_id, run_id = place(number)
        begun = START + number
        new = number % (PER_RUN * RUNS_PER_SESSION) == 0
        session = Session(session_id, owner, begun, begun, project_id="default", display_name=f"trial {number}")
        yield session if new else None, Run(run_id, session_id, owner, **SHAPE, lora_seed=0, created_at=begun)


def fill(connection: Connection, numbers: range) -> None:
    for session, run in owners_rows(numbers):
        if session is not None:
            repository.insert(connection, session)
        if run is not None:
            repository.insert(connection, run)
    connection.execute(tables.checkpoints.insert(), [asdict(row(number)) for number in numbers])


def count(connection: Connection) -> None:
    """What `checkpoints.put` counts as it goes."""
    owner = tables.checkpoints.c.owner
    counted = select(owner, func.count()).where(tables.named).group_by(owner)
    connection.execute(tables.named_checkpoints.insert().from_select(["owner", "total"], counted))


def write_folders(root: Path) -> None:
    """Real folders, each with contents of its own."""
    for number in range(FOLDERS):
        staged = root / f"folder-{number}{files.STAGED}"
        staged.mkdir(parents=True)
        (staged / "adapter_model.safetensors").write_bytes(contents(number))
        files.commit(root, f"folder-{number}")


def contents(folder: int) -> bytes:
    return random.Random(folder).randbytes(4096)


def questions(rows: int) -> dict[str, Callable[[Connection], object]]:
    """What requests ask, with other rows at each call."""
    pick = random.Random(0).randrange
    mine = rows // len(OWNERS)
    page = partial(listings.checkpoints_of_owner, owner=OWNERS[0])
    recently = time.time() - 300
    searched = SessionFilter(OWNERS[0], recently, display_name="trial", statuses=[StatusFilter("active")])
    return {
        "list: first page of 100": partial(page, window=Window(100, 0)),
        "list: a page in the middle": partial(page, window=Window(100, mine // 2)),
        "list: the last page": partial(page, window=Window(100, mine - 100)),
        "list: of a run": lambda c: listings.checkpoints_of_run(c, place(pick(rows))[2], public=False),
        "list: 20 training runs": partial(listings.runs_of_owner, owner=OWNERS[0], window=Window(20, 0)),
        "find: by path": lambda c: checkpoints.live(c, path_of(pick(rows))),
        "find: sessions by name": lambda c: search.search(c, searched, 50, None),
        "may it be deleted": lambda c: checkpoints.reader(c, row(pick(rows)), ["load_weights"], recently),
        f"expire: {EXPIRE_AT_ONCE} at once": partial(checkpoints.expire, limit=EXPIRE_AT_ONCE),
    }


def audit(database: Database, root: Path, rows: int) -> int:
    """Read random checkpoints by their paths; returns how many were not what was saved."""
    errors = 0
    for number in random.Random(1).sample([n for n in range(rows) if n % EXPIRING_EVERY], AUDITED):
        found = asyncio.run(database.transaction(partial(checkpoints.live, path=path_of(number))))
        folder = root / found.directory if found is not None else root / "missing"
        wrong = found is None or files.damaged_files(folder)
        errors += bool(wrong or (folder / "adapter_model.safetensors").read_bytes() != contents(number % FOLDERS))
    return errors


def timed(database: Database, ask: Callable[[Connection], object]) -> tuple[float, float]:
    """Milliseconds that a transaction took, and that it computed."""

    def transaction(connection: Connection) -> float:
        begun = time.thread_time()
        ask(connection)
        return time.thread_time() - begun

    begun = time.perf_counter()
    computed = asyncio.run(database.transaction(transaction))
    return (time.perf_counter() - begun) * 1e3, computed * 1e3


def measure(rows: int, rounds: int, folder: Path) -> dict[str, Any]:
    root = folder / "checkpoints"
    write_folders(root)
    database = Database.at(folder / "mint.db")
    started = time.perf_counter()
    for first in track(range(0, rows, BATCH), "inserting", console=console):
        asyncio.run(database.transaction(partial(fill, numbers=range(first, min(rows, first + BATCH)))))
    filled = time.perf_counter() - started
    asyncio.run(database.transaction(count))
    times = {name: [timed(database, ask) for _ in range(rounds)] for name, ask in questions(rows).items()}
    errors = audit(database, root, rows)
    database.close()
    return {
        "rows": rows,
        "inserted_per_s": round(rows / filled),
        "database_mb": round((folder / "mint.db").stat().st_size / 1e6, 1),
        "p50_ms": {name: round(median(wall for wall, _ in both), 2) for name, both in times.items()},
        "p90_ms": {name: round(quantiles([wall for wall, _ in both], n=10)[8], 2) for name, both in times.items()},
        "p50_cpu_ms": {name: round(median(cpu for _, cpu in both), 2) for name, both in times.items()},
        "audited": AUDITED,
        "audit_errors": errors,
    }


def show(result: dict[str, Any]) -> None:
    table = Table(
        "request",
        "p50 ms",
        "p90 ms",
        "p50 CPU ms",
        title=f"{result['rows']:,} checkpoints ({result['database_mb']} MB)",
    )
    for name, value in result["p50_ms"].items():
        table.add_row(name, str(value), str(result["p90_ms"][name]), str(result["p50_cpu_ms"][name]))
    console.print(table)
    console.print(f"{result['audited']} random checkpoints read by path and hash: {result['audit_errors']} errors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="at least 10,000")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.rows < BATCH:
        parser.error(f"--rows must be at least {BATCH}")
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2")
    if arguments.rounds * EXPIRE_AT_ONCE > arguments.rows // EXPIRING_EVERY:
        parser.error("--rounds: there are too few rows that expire")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.rows, arguments.rounds, Path(folder))
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.exit(1 if result["audit_errors"] else 0)


if __name__ == "__main__":
    main()
