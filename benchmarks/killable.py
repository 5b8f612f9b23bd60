"""`mint serve` as a process that may be killed at any time, and started again over the same data at the same port."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

KEY = "sk-benchmark-secret"
SDK_KEY = KEY.replace("sk-", "tml-")
READY_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class KillableServer:
    """A server over `folder`; what it logs goes to `server.log` there. `module` is what is run, with `options`."""

    def __init__(self, folder: Path, *options: str, module: Sequence[str] = ("mint.cli", "serve", "--quiet")) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "server.log").open("ab")
        data = ["--port", str(self.port), "--data-dir", str(folder / "data"), "--api-key", KEY]
        self._command = [sys.executable, "-m", *module, *data, *options]
        self._environment = {**os.environ, "MINT_CREDENTIALS": str(folder / "credentials.json")}
        self.process = self._start()

    def _start(self) -> psutil.Popen:
        return psutil.Popen(
            self._command, env=self._environment, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def wait_ready(self) -> None:
        """Until it serves.

        Raises:
            RuntimeError: it has ended, or takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"the server is not ready; {self._log.name} says why")

    def workers(self) -> list[Any]:
        try:
            return list(self.process.children())
        except psutil.NoSuchProcess:
            return []

    def kill_worker(self) -> bool:
        """kill -9; False if there is none now."""
        found = self.workers()
        for worker in found:
            worker.kill()
        return bool(found)

    def kill(self) -> None:
        """kill -9, and start again at once."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()
