"""A home of its own for every test, Tinker servers that note the keys they are sent, and child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from mint.client import credentials
from mint.client.credentials import LocalServer

SOURCES = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder and an environment without a word on MinT or Tinker."""
    for name in list(os.environ):
        if name.startswith(("MINT_", "TINKER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    return tmp_path


@pytest.fixture
def remember() -> Callable[..., LocalServer]:
    """Write a server down as `mint serve` does; it counts as running as long as the tests do."""

    def write(base_url: str, api_key: str = "sk-file-key", **fields: object) -> LocalServer:
        server = LocalServer(base_url, api_key, **fields)
        credentials.remember(server)
        return server

    return write


class FakeServer:
    """As much of a Tinker server as a client needs to start; notes path and key of every request."""

    ANSWERS: ClassVar = {
        "/api/v1/get_server_capabilities": {"supported_models": []},
        "/api/v1/create_session": {"type": "create_session", "session_id": "session"},
        "/api/v1/create_sampling_session": {
            "type": "create_sampling_session",
            "sampling_session_id": "sampler",
        },
        "/api/v1/sessions/session/finish": {},
        "/api/v1/session_heartbeat": {"type": "session_heartbeat"},
        "/api/v1/client/dynamic_config": {},
    }

    def __init__(self, use_pyqwest: bool) -> None:
        self.requests: list[tuple[str, str | None]] = []
        answers = {
            **self.ANSWERS,
            "/api/v1/client/config": {"pjwt_auth_enabled": False, "use_pyqwest_transport": use_pyqwest},
        }
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                requests.append((self.path, self.headers.get("X-API-Key")))
                body = json.dumps(answers.get(self.path, {})).encode()
                self.send_response(200 if self.path in answers else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def keys(self) -> set[str | None]:
        return {key for _, key in self.requests}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def start_server() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(use_pyqwest: bool = False) -> FakeServer:
        servers.append(FakeServer(use_pyqwest))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Run a program in a fresh interpreter without torch (the SDK does without, and starts faster)."""

    def run(program: str, *arguments: str) -> str:
        result = subprocess.run(
            [
                sys.executable,
                "-W",
                "error::RuntimeWarning",
                "-c",
                f"import sys\nsys.modules['torch'] = None\n{program}",
                *arguments,
            ],
            env={**os.environ, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run
