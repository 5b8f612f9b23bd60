"""What journal and snapshots cost: of training throughput, and of an optimizer step's round trip."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track
from sqlalchemy import Connection

from benchmarks.killable import KEY, SDK_KEY, KillableServer
from benchmarks.models import SHAPES, SMALL, TINY, model_folder
from mint.config import ModelSource, ServerConfig

T = TypeVar("T")

DATUMS, LENGTH, RANK = 16, 256, 16
VOCABULARY = int(SHAPES[SMALL]["vocab_size"])
STEPS = 12
"""Training steps of one side in a round: long enough for a snapshot every ten seconds to come between."""
SNAPSHOT_SECONDS = ServerConfig.snapshot_seconds
NEVER = 1e9
ROUND_TRIPS = 200
console = Console(stderr=True)

Side = Callable[[], object]


def measure_cost(folder: Path, rounds: int) -> dict[str, Any]:
    """Sides take turns, so that all see the same machine; ratios are medians over the rounds."""
    model = model_folder(SMALL)
    options = ["--model", f"{SMALL}={model}", "--snapshot-seconds"]
    with (
        _served(folder / "with", *options, str(SNAPSHOT_SECONDS)) as snapshots,
        _served(folder / "without", *options, str(NEVER)) as journal,
    ):
        sides = {"engine alone": _engine(model), "journal": journal, "journal and snapshots": snapshots}
        rates = _rates(sides, rounds)
    both, alone = rates["journal and snapshots"], rates["engine alone"]
    round_trip, journaled = asyncio.run(_optim_steps(folder / "steps"))
    return {
        "tokens_per_s": {name: round(median(each)) for name, each in rates.items()},
        "snapshots_share": round(1 - _ratio(both, rates["journal"]), 4),
        "server_share": round(1 - _ratio(both, alone), 4),
        "optim_step_ms": round(round_trip, 2),
        "journal_ms": round(journaled, 2),
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(mine / other for mine, other in zip(ours, theirs, strict=True))


def _rates(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    for side in sides.values():
        side()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for place in track(range(rounds), "training throughput", console=console):
        for name in list(sides) if place % 2 == 0 else list(sides)[::-1]:
            started = time.perf_counter()
            sides[name]()
            rates[name].append(STEPS * DATUMS * LENGTH / (time.perf_counter() - started))
    return rates


def _engine(model: Path) -> Side:
    """The engine in this process, without server, journal and snapshots."""
    import torch

    from benchmarks.in_process import InProcess, random_data
    from mint.engine.core import AdamParams, ForwardBackward, OptimStep

    engine = InProcess.load(model, torch.get_num_threads())
    engine.create(RANK, "run")
    data = random_data(VOCABULARY, [LENGTH] * DATUMS)

    def train() -> None:
        for _ in range(STEPS):
            engine.execute(ForwardBackward("run", data, "cross_entropy"), OptimStep("run", AdamParams()))

    return train


@contextmanager
def _served(folder: Path, *options: str) -> Iterator[Side]:
    """The same steps through the SDK, each sent while the one before is computed."""
    import tinker
    from tinker import types

    folder.mkdir(parents=True)
    server = KillableServer(folder, *options)
    try:
        server.wait_ready()
        with tinker.ServiceClient(base_url=server.url, api_key=SDK_KEY) as service:
            run = service.create_lora_training_client(base_model=SMALL, rank=RANK).result()
            rows = np.random.default_rng(0).integers(0, VOCABULARY, (DATUMS, LENGTH + 1)).tolist()
            data = [
                types.Datum(model_input=types.ModelInput.from_ints(row[:-1]), loss_fn_inputs={"target_tokens": row[1:]})
                for row in rows
            ]

            def train() -> None:
                before: list[Any] = []
                for _ in range(STEPS):
                    sent = [run.forward_backward(data, "cross_entropy"), run.optim_step(types.AdamParams())]
                    for future in before:
                        future.result()
                    before = sent
                for future in before:
                    future.result()

            yield train
    finally:
        server.stop()


async def _optim_steps(folder: Path) -> tuple[float, float]:
    """Milliseconds of an optimizer step's round trip, and of what it spends in the database, at the median."""
    from mint.server.app import create_app
    from mint.store.database import Database

    config = ServerConfig(folder, (ModelSource(TINY, str(model_folder(TINY))),), api_keys=(KEY,))
    app = create_app(config)
    spent: list[float] = []
    real = Database.transaction

    async def timed(database: Database, work: Callable[[Connection], T]) -> T:
        started = time.perf_counter()
        try:
            return await real(database, work)
        finally:
            spent.append(time.perf_counter() - started)

    trips, journaled = [], []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server/api/v1", headers={"X-API-Key": KEY}, timeout=60
        ) as http,
    ):
        await app.state.startup
        run = await _make_run(http)
        setattr(Database, "transaction", timed)  # noqa: B010  # a method is replaced on purpose
        try:
            for number in range(1, ROUND_TRIPS + 1):
                spent.clear()
                started = time.perf_counter()
                await _result(http, "optim_step", {"model_id": run, "seq_id": number})
                trips.append(time.perf_counter() - started)
                journaled.append(sum(spent))
        finally:
            setattr(Database, "transaction", real)  # noqa: B010
    return median(trips) * 1e3, median(journaled) * 1e3


async def _make_run(http: httpx.AsyncClient) -> str:
    session = (await http.post("/create_session", json={})).json()["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": TINY, "lora_config": {"rank": RANK}}
    run_id: str = (await _result(http, "create_model", body))["model_id"]
    return run_id


async def _result(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request_id = (await http.post(f"/{path}", json=body)).json()["request_id"]
    answer: dict[str, Any] = (await http.post("/retrieve_future", json={"request_id": request_id})).json()
    return answer
