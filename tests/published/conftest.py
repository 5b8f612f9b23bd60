"""One server for all programs, their stand-in for the hub, and the table of their times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mint.tiny import model_path

from ..server.live import ALICE, LiveServer, environment
from .hub import MODEL, make_hub

SECONDS = 300
"""Nothing here takes that long."""

TIMES: list[tuple[str, float]] = []
"""What ran, and for how many seconds, interpreter and imports included."""


@dataclass(frozen=True)
class Programs:
    """Runs programs as their users do: from a shell, with two variables set."""

    server: LiveServer
    hub: Path

    @property
    def environment(self) -> dict[str, str]:
        """Where the server is. The rest keeps a program from looking for a network that tests must not need."""
        key = ALICE.replace("sk-", "tml-")
        offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
        return environment(self.server.folder, TINKER_BASE_URL=self.server.url, TINKER_API_KEY=key, **offline)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`python` with these arguments."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=self.hub, env=self.environment, text=True, **pipes)

    def run(self, module: str, *arguments: str, name: str = "") -> str:
        """What `python -m module` prints."""
        return self.finish(self.start("-m", module, *arguments), name or module)

    def finish(self, process: subprocess.Popen[str], name: str) -> str:
        """Wait for a program that was just started, and note its time."""
        started = time.perf_counter()
        try:
            said, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0, (said + errors)[-6000:]
        TIMES.append((name, time.perf_counter() - started))
        return said

    def log(self, name: str) -> Path:
        """A folder for a program's logs, which it makes itself."""
        return self.hub / "logs" / name


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What the cookbook's programs write at each step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values(folder: Path, name: str) -> list[float]:
    return [row[name] for row in metrics(folder) if name in row]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    folder = tmp_path_factory.mktemp("programs")
    server = LiveServer(folder, "--model", f"{MODEL}={model_path()}").start()
    yield Programs(server, make_hub(folder / "hub"))
    server.stop()
    assert "Traceback" not in server.output, server.output


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not TIMES:
        return
    terminalreporter.section(f"programs on {os.cpu_count()} cores")
    for name, seconds in TIMES:
        terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
