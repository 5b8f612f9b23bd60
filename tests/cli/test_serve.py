"""`mint serve` from the outside: what it says, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from mint.cli.holding import Held
from mint.cli.main import app
from mint.config import Durability, ServerConfig
from tests.server.live import LiveServer, environment, tiny_model

SECONDS = 60
FIND = """
import sys
sys.modules["torch"] = None  # the SDK starts faster without
import mint
print(mint.RestClient().get_server_capabilities().result(30).supported_models[0].model_name)
"""


def serve(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    data = () if "--data-dir" in options else ("--data-dir", str(folder / "data"))
    return subprocess.run(
        [sys.executable, "-m", "mint.cli", "serve", "--port", "0", *data, *options],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def refused(folder: Path, *options: str) -> str:
    """What it says as it refuses: one line of ours, no traceback."""
    result = serve(folder, *options)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("mint serve: "), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_life_on_loopback(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, "--model", tiny_model(tmp_path), keys=())
    server.start(wait=False)
    credentials = tmp_path / "credentials.json"
    port = listening_port(server)
    answers = []
    while not answers or answers[-1] != 200:
        told = credentials.exists()
        answers.append(httpx.get(f"http://127.0.0.1:{port}/api/v1/healthz", timeout=SECONDS).status_code)
        assert answers[-1] in (200, 503)
        assert answers[-1] == 200 or not told
        time.sleep(0.05)
    assert answers[0] == 503
    server.wait_ready()

    # what it says
    assert server.url == f"http://127.0.0.1:{port}"
    key = server.wait_for(re.compile(r"export MINT_API_KEY=(sk-\S+)\n"))[1]
    server.wait_for(re.compile(rf"export TINKER_API_KEY=tml-{key.removeprefix('sk-')}\n"))
    assert f"export TINKER_BASE_URL={server.url}\n" in server.output
    assert f"export MINT_BASE_URL={server.url}\n" in server.output
    assert "MinT serves mint/tiny at" in server.output

    # what it leaves for programs of the same user, and for nobody else
    for private in (credentials, tmp_path / "data" / "local_key"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    found = subprocess.run(
        [sys.executable, "-c", FIND],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert found.stdout.strip() == "mint/tiny", found.stderr
    unknown = httpx.get(f"{server.url}/api/v1/get_server_capabilities", headers={"X-API-Key": "sk-wrong-secret"})
    assert unknown.status_code == 401

    # what a second one is told
    assert "is in use by another" in refused(tmp_path)
    assert "cannot listen on 127.0.0.1" in refused(tmp_path, "--data-dir", str(tmp_path / "other"), "--port", str(port))

    # its end
    worker, started = server.worker, time.monotonic()
    assert server.stop(signal.SIGTERM) == 0
    worker.wait(SECONDS)
    assert time.monotonic() - started < 10
    assert json.loads(credentials.read_text())["servers"] == {}
    assert server.output.rstrip().endswith(f"runs and checkpoints are kept in {tmp_path / 'data'}")
    assert "Traceback" not in server.output


def listening_port(server: LiveServer) -> int:
    """Where it listens, before it says so."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    while not (listening := [c for c in process.net_connections() if c.status == psutil.CONN_LISTEN]):
        time.sleep(0.05)
    return int(listening[0].laddr.port)


def test_a_stop_while_models_are_loaded(tmp_path: Path) -> None:
    keys = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        server = LiveServer(tmp_path, keys=()).start(wait=False)
        while not server.has_worker:
            time.sleep(0.02)
        assert server.stop(number) == 0, server.output
        assert "MinT serves" not in server.output
        assert "Traceback" not in server.output
        keys.add((tmp_path / "data" / "local_key").read_text())
    assert len(keys) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_nobody_is_let_in_from_outside_without_a_key(tmp_path: Path, host: str) -> None:
    said = refused(tmp_path, "--host", host)
    assert "--api-key" in said
    assert not (tmp_path / "data").exists()


def test_what_cannot_be_served_is_told(tmp_path: Path) -> None:
    assert "[nothing]/here" in refused(tmp_path, "--model", f"mine={tmp_path}/[nothing]/here")
    assert not (tmp_path / "credentials.json").exists()


def test_what_is_no_key_is_told(tmp_path: Path) -> None:
    for key in ("short", ""):
        assert "sk-SECRET" in refused(tmp_path, "--api-key", key)


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused(tmp_path, "--data-dir", str(tmp_path / "file"))


def test_a_database_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mint.db").write_text("no database" * 100)
    assert "file is not a database" in refused(tmp_path)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        started = time.monotonic()
        said = refused(tmp_path, "--port", port, "--model", "nobody/nothing")
    assert port in said
    assert "--port" in said
    assert time.monotonic() - started < 10


def test_a_worker_that_ends_while_it_loads_is_told(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, keys=())
    server.start(wait=False)
    while not server.has_worker:
        time.sleep(0.02)
    server.kill_worker()
    assert server.process is not None
    assert server.process.wait(SECONDS) == 1
    assert "ended with code -9 while it loaded the model" in server.output
    assert "Traceback" not in server.output


def test_settings_of_samples_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, configs = sys.modules["mint.cli.serve"], []

    async def run(mine: Held) -> None:
        mine.listener.close()
        mine.database.close()
        configs.append(mine.config.engine)

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "configure", lambda *_: None)
    options = ["serve", "--quiet", "--port", "0", "--data-dir", str(tmp_path / "data")]
    for more in ([], ["--kv-cache-gib", "1.5", "--max-decode-batch", "7"]):
        assert CliRunner().invoke(app, options + more).exit_code == 0
    assert [(config.kv_cache_bytes, config.max_decode_batch) for config in configs] == [(None, 256), (1536 << 20, 7)]


def test_settings_of_stores_come_from_options_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[ServerConfig] = []
    monkeypatch.setattr(sys.modules["mint.cli.serve"], "_serve", configs.append)
    monkeypatch.setattr(sys.modules["mint.cli.serve"], "configure", lambda *_: None)
    url, store = "postgresql+psycopg://mint@db/mint", "s3://bucket/prefix"
    serve = ["serve", "--data-dir", str(tmp_path)]
    for options, environment_ in (
        ([], {}),
        (["--database-url", url, "--checkpoint-store", store], {}),
        ([], {"MINT_DATABASE_URL": url, "MINT_CHECKPOINT_STORE": store}),
        (["--durability", "power", "--checkpoint-cache-gib", "0.5"], {}),
    ):
        result = CliRunner().invoke(app, serve + options, env=environment_)
        assert result.exit_code == 0, result.output
    assert [(each.database_url, each.checkpoint_store) for each in configs] == [
        (None, None),
        (url, store),
        (url, store),
        (None, None),
    ]
    assert [(each.durability, each.checkpoint_cache_bytes >> 20) for each in configs[2:]] == [
        (Durability.PROCESS, 20 << 10),
        (Durability.POWER, 512),
    ]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--database-url", "mysql://user:secret@host/db", "database_url: names mysql"),
        ("--database-url", "postgresql+psycopg:///mint?host=/nowhere", "connection is bad"),
        ("--checkpoint-store", "bucket/prefix", "checkpoint_store: must begin with one of s3://"),
    ],
)
def test_a_store_that_cannot_be_had_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, said: str
) -> None:
    monkeypatch.setattr(sys.modules["mint.cli.serve"], "configure", lambda *_: None)
    options = ["serve", "--data-dir", str(tmp_path / "data"), "--port", "0", option, value]
    result = CliRunner().invoke(app, options, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert said in result.stderr
    assert "secret" not in result.output
