"""Hours of mixed traffic in minutes: nothing may grow with it.

    python -m benchmarks.soak [--minutes 20] [--clients 4] [--out FILE]

Clients come, train, sample, save, cancel, and go, some of them without a word, to a server that forgets a hundred times
as fast as others (`benchmarks/soak_server.py`). Memory of server and worker, open files, rows and files on disk are
noted all the while; the last third of the time is compared with the third before it. Prints a table and one JSON
object. Exits with 1 if something has grown.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.killable import KEY, KillableServer
from mint.tiny import NAME

NOTE_SECONDS = 2.0
TABLES = ("sessions", "runs", "operations", "samplers", "checkpoints", "discarded_folders", "snapshots")
ALLOWED = {"server MiB": 1.03, "workers MiB": 1.03, "open files": 1.1}
"""By how much a median may be larger in the last third; rows and files on disk by a fifth, and by a few."""
SLACK = 20.0
LIMITS = httpx.Limits(keepalive_expiry=2)  # the server closes a connection that was idle for five seconds
console = Console(stderr=True)


class Client(threading.Thread):
    """One user after another."""

    def __init__(self, server: KillableServer, seed: int, ended: threading.Event) -> None:
        super().__init__(name=f"client {seed}")
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._chance = random.Random(seed)
        self._http = httpx.Client(
            base_url=f"{server.url}/api/v1", headers={"X-API-Key": KEY}, timeout=120, limits=LIMITS
        )
        self._ended = ended

    def run(self) -> None:
        ways: list[Callable[[], None]] = [self.train, self.sample, self.train_and_vanish, self.cancel, self.revisions]
        while not self._ended.is_set():
            way = self._chance.choice(ways)
            try:
                way()
                self.done[way.__name__] += 1
            except Exception as error:
                self.errors.append(f"{way.__name__}: {error!r}")

    # --- what users do --------------------------------------------------------------------------------------

    def train(self) -> None:
        """A run that saves a checkpoint for a while, and one that it deletes."""
        session, run = self._new_run()
        seq_id = self._steps(run, self._chance.randint(1, 5))
        self._result("save_weights", {"model_id": run, "seq_id": seq_id, "path": "kept", "ttl_seconds": 3600})
        self._result("save_weights", {"model_id": run, "seq_id": seq_id + 1, "path": "gone"})
        checked(self._http.delete(f"/training_runs/{run}/checkpoints/weights/gone"))
        self._finish(session)

    def train_and_vanish(self) -> None:
        _, run = self._new_run()
        self._steps(run, 2)

    def sample(self) -> None:
        session = self._session()
        sampler = self._sampler(session)
        for number in range(self._chance.randint(1, 5)):
            self._result("asample", self._sample(sampler, number, 16))
        self._finish(session)

    def cancel(self) -> None:
        """A long sample that is given up, and a client that goes away over another."""
        session = self._session()
        sampler = self._sampler(session)
        asked = [self._ask("asample", self._sample(sampler, number, 200)) for number in range(2)]
        self._post("cancel_future", {"request_id": asked[0]})
        if self._chance.random() < 0.5:
            self._finish(session)

    def revisions(self) -> None:
        """Weights without a name, sampled while the run trains on."""
        session, run = self._new_run()
        seq_id = 1
        for number in range(2):
            seq_id = self._steps(run, 1, seq_id)
            body = {"model_id": run, "seq_id": seq_id, "sampling_session_seq_id": number}
            sampler = self._result("save_weights_for_sampler", body)["sampling_session_id"]
            seq_id += 1
            self._result("asample", self._sample(sampler, 0, 8))
        if self._chance.random() < 0.5:
            self._finish(session)

    # --- requests -------------------------------------------------------------------------------------------

    def _ask(self, path: str, body: dict[str, Any]) -> str:
        request_id: str = self._post(path, body)["request_id"]
        return request_id

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return checked(self._http.post(f"/{path}", json=body))

    def _result(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request_id = self._ask(path, body)
        while True:
            response = self._http.post("/retrieve_future", json={"request_id": request_id})
            if response.status_code != 408:
                answer: dict[str, Any] = checked(response)
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer

    def _session(self) -> str:
        session: str = self._post("create_session", {})["session_id"]
        return session

    def _finish(self, session: str) -> None:
        self._post(f"sessions/{session}/finish", {})

    def _new_run(self) -> tuple[str, str]:
        session = self._session()
        body = {"session_id": session, "model_seq_id": 0, "base_model": NAME, "lora_config": {"rank": 8}}
        return session, self._result("create_model", body)["model_id"]

    def _sampler(self, session: str) -> str:
        body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": NAME}
        sampler: str = self._post("create_sampling_session", body)["sampling_session_id"]
        return sampler

    def _sample(self, sampler: str, number: int, tokens: int) -> dict[str, Any]:
        prompt = {"chunks": [{"type": "encoded_text", "tokens": self._tokens(16)}]}
        params = {"max_tokens": tokens, "stop": []}
        return {"sampling_session_id": sampler, "seq_id": number, "prompt": prompt, "sampling_params": params}

    def _steps(self, run: str, count: int, first: int = 1) -> int:
        """Train; returns the next number."""
        for place in range(count):
            number = first + 2 * place
            tokens = self._tokens(33)
            inputs = {"target_tokens": {"data": tokens[1:], "dtype": "int64", "shape": [32]}}
            chunk = {"type": "encoded_text", "tokens": tokens[:-1]}
            data = [{"model_input": {"chunks": [chunk]}, "loss_fn_inputs": inputs}]
            part = {"data": data, "loss_fn": "cross_entropy"}
            self._result("forward_backward", {"model_id": run, "seq_id": number, "forward_backward_input": part})
            self._result("optim_step", {"model_id": run, "seq_id": number + 1, "adam_params": {"learning_rate": 1e-3}})
        return first + 2 * count

    def _tokens(self, count: int) -> list[int]:
        return [self._chance.randrange(5, 500) for _ in range(count)]


def checked(response: httpx.Response) -> Any:
    """The answer, if it is no refusal."""
    if response.is_error:
        raise RuntimeError(f"{response.request.url.path}: {response.status_code} {response.text[:300]}")
    return response.json() if response.content else None


def note(server: KillableServer, folder: Path) -> dict[str, float]:
    """What there is now."""
    data = folder / "data"
    with closing(sqlite3.connect(data / "mint.db", timeout=30)) as database:
        # an hour has passed for what was to be kept for one
        database.execute("UPDATE checkpoints SET expires_at = ? WHERE expires_at > ?", (time.time(), time.time()))
        database.commit()
        counts = {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES}
    workers = server.workers()
    return {
        "server MiB": server.process.memory_full_info().uss / 2**20,
        "workers MiB": sum(worker.memory_full_info().uss for worker in workers) / 2**20,
        "open files": float(server.process.num_fds() + sum(worker.num_fds() for worker in workers)),
        **{f"rows: {name}": float(count) for name, count in counts.items()},
        "files": float(sum(1 for _ in data.rglob("*"))),
    }


def measure(folder: Path, minutes: float, clients: int) -> dict[str, Any]:
    server = KillableServer(folder, module=("benchmarks.soak_server",))
    ended = threading.Event()
    notes: list[dict[str, float]] = []
    try:
        server.wait_ready()
        players = [Client(server, seed, ended) for seed in range(clients)]
        for player in players:
            player.start()
        deadline = time.monotonic() + 60 * minutes
        with Progress(console=console) as progress:
            bar = progress.add_task("soaking", total=60 * minutes)
            while time.monotonic() < deadline:
                time.sleep(NOTE_SECONDS)
                with suppress(psutil.NoSuchProcess, FileNotFoundError):
                    notes.append(note(server, folder))
                progress.update(bar, completed=60 * minutes - (deadline - time.monotonic()))
        ended.set()
        for player in players:
            player.join()
    finally:
        ended.set()
        server.stop()
    done = sum((player.done for player in players), Counter())
    return {
        "minutes": minutes,
        "done": dict(done),
        "errors": [error for player in players for error in player.errors],
        "figures": compared(notes),
    }


def compared(notes: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """The middle third and the last."""
    third = len(notes) // 3
    figures = {}
    for name in notes[0]:
        middle, last = (median(each[name] for each in part) for part in (notes[third : 2 * third], notes[2 * third :]))
        allowed = middle * ALLOWED[name] if name in ALLOWED else middle * 1.2 + SLACK
        figures[name] = {"middle": round(middle, 1), "last": round(last, 1), "grows": last > allowed}
    return figures


def show(result: dict[str, Any]) -> None:
    table = Table("", "middle third", "last third", "", title=f"{result['minutes']:g} minutes, {result['done']}")
    for name, figure in result["figures"].items():
        verdict = "[red]grows" if figure["grows"] else "[green]steady"
        table.add_row(name, str(figure["middle"]), str(figure["last"]), verdict)
    console.print(table)
    console.print(f"{len(result['errors'])} errors of clients", *result["errors"][:5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), arguments.minutes, arguments.clients)
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.exit(1 if result["errors"] or any(figure["grows"] for figure in result["figures"].values()) else 0)


if __name__ == "__main__":
    main()
