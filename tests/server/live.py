"""`mint serve` as a process of its own, with a real engine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

from mint.tiny import NAME, model_path

ALICE, BOB = "sk-alice-secret", "sk-bob-secret"
READY = re.compile(r"MinT serves .* at (http://\S+) ")
START_SECONDS = 90
STOP_SECONDS = 20


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """A home of its own, and no word of MinT or Tinker from outside."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MINT_", "TINKER_"))}
    mine = {"HOME": str(folder), "MINT_CREDENTIALS": str(folder / "credentials.json"), "TINKER_TELEMETRY": "0"}
    return {**outside, **mine, **variables}


class LiveServer:
    """A server over `folder`; `port` 0 is settled by the first start."""

    def __init__(self, folder: Path, *options: str, keys: Sequence[str] = (ALICE, BOB)) -> None:
        self.folder = folder
        self.url = ""
        self.lines: list[str] = []
        self._options = [*options, *(part for key in keys for part in ("--api-key", key))]
        self._port = "0"
        self._spoke = threading.Condition()
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, wait: bool = True) -> LiveServer:
        data = ["--port", self._port, "--data-dir", str(self.folder / "data")]
        command = [sys.executable, "-m", "mint.cli", "serve", *data, *self._options]
        self.lines = []
        self.process = subprocess.Popen(command, env=environment(self.folder), stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        found = self.wait_for(READY)
        self.url = found[1]
        self._port = self.url.rpartition(":")[2]

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """The first match in what the server says."""
        deadline = time.monotonic() + START_SECONDS
        with self._spoke:
            while (found := pattern.search(self.output)) is None:
                assert self._spoke.wait(deadline - time.monotonic()), self.output
                assert self.process is not None
                assert self.process.poll() is None or pattern.search(self.output), self.output
        return found

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children

    @property
    def worker(self) -> psutil.Process:
        (child,) = self.workers
        return child

    @property
    def has_worker(self) -> bool:
        assert self.process is not None
        return bool(psutil.Process(self.process.pid).children())

    def kill_worker(self) -> None:
        self.worker.send_signal(signal.SIGKILL)

    def kill(self) -> None:
        """As the kernel does it when memory runs out; the worker ends when it sees that the server has."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def get(self, path: str, key: str = ALICE) -> httpx.Response:
        return httpx.get(f"{self.url}/api/v1/{path}", headers={"X-API-Key": key}, timeout=30)

    def post(self, path: str, body: object, key: str = ALICE) -> httpx.Response:
        return httpx.post(f"{self.url}/api/v1/{path}", json=body, headers={"X-API-Key": key}, timeout=30)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._spoke:
                self.lines.append(line)
                self._spoke.notify_all()
        with self._spoke:
            self._spoke.notify_all()


def tiny_model(folder: Path) -> str:
    """`--model` for a copy of the built-in model, which nobody trains again while it is served."""
    copy = folder / "tiny"
    if not copy.exists():
        shutil.copytree(model_path(), copy)
    return f"{NAME}={copy}"
