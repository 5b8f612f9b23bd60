"""The official `tinker` command, as people use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tinker.cli.__main__ import main_cli

import mint

from .live import ALICE, BOB, LiveServer, environment
from .sdk import SECONDS, run_of


class Command:
    """`tinker` with a key, against a server; in this process, since each start of its own takes seconds."""

    def __init__(self, live: LiveServer, key: str) -> None:
        self.environment = {"TINKER_BASE_URL": live.url, "TINKER_API_KEY": key.replace("sk-", "tml-")}

    def run(self, *arguments: str) -> Result:
        variables = {**self.environment, "TINKER_TELEMETRY": "0", "COLUMNS": "250"}
        return CliRunner(env=variables).invoke(main_cli, arguments)

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok("--format", "json", *arguments))

    def refusal(self, *arguments: str) -> str:
        """What it says when it does not do it."""
        done = self.run(*arguments)
        assert done.exit_code != 0
        error = done.exception
        return f"{done.output} {error} {getattr(error, 'details', '')}"


@pytest.fixture
def command(live: LiveServer) -> Command:
    return Command(live, ALICE)


def test_runs_and_checkpoints(alice: mint.ServiceClient, command: Command) -> None:
    run = run_of(alice)
    path = run.save_state("first", ttl_seconds=3600).result(SECONDS).path
    run.save_state("second").result(SECONDS)
    listed = command.json("run", "list", "--limit", "0")["runs"]
    assert run.model_id in [each["training_run_id"] for each in listed]
    table = command.ok("run", "list", "--limit", "5", "--columns", "id,model,lora,status,checkpoint")
    assert "weights/second" in table
    assert command.json("run", "info", run.model_id)["last_checkpoint"]["checkpoint_id"] == "weights/second"
    assert "OK" in command.ok("run", "info", run.model_id)

    rows = command.json("checkpoint", "list", "--run-id", run.model_id)["checkpoints"]
    assert [row["checkpoint_id"] for row in rows] == ["weights/second", "weights/first"]
    everything = command.json("checkpoint", "list", "--limit", "0")["checkpoints"]
    assert path in [row["tinker_path"] for row in everything]
    info = command.json("checkpoint", "info", path)
    assert (info["public"], info["expires_at"] is None, info["lora_rank"]) == (False, False, 4)


def test_what_it_changes(alice: mint.ServiceClient, command: Command, live: LiveServer) -> None:
    run = run_of(alice)
    paths = [run.save_state(name).result(SECONDS).path for name in ("a", "b", "c")]
    command.ok("checkpoint", "publish", paths[0])
    command.ok("checkpoint", "set-ttl", paths[0], "--ttl", "7200")
    info = command.json("checkpoint", "info", paths[0])
    assert (info["public"], info["expires_at"] is None) == (True, False)
    command.ok("checkpoint", "unpublish", paths[0])
    command.ok("checkpoint", "set-ttl", paths[0], "--remove")
    info = command.json("checkpoint", "info", paths[0])
    assert (info["public"], info["expires_at"] is None) == (False, True)

    assert "ttl_seconds" in command.refusal("checkpoint", "set-ttl", paths[0], "--ttl", "60")
    stranger = Command(live, BOB)
    assert "another API key" in stranger.refusal("checkpoint", "publish", paths[0])
    deleted = stranger.json("checkpoint", "delete", "--yes", paths[0])
    assert deleted["deleted_count"] == 0
    assert command.json("checkpoint", "delete", "--yes", paths[0]) == {"deleted_count": 1, "failed": []}
    assert command.json("checkpoint", "delete", "--yes", "--run-id", run.model_id)["deleted_count"] == 2
    assert command.json("checkpoint", "list", "--run-id", run.model_id)["checkpoints"] == []


def test_a_trace(alice: mint.ServiceClient, command: Command, tmp_path: Path) -> None:
    run = run_of(alice)
    run.save_state("traced").result(SECONDS)
    session_id = run.model_id.partition(":")[0]
    command.ok("session", "export-trace", session_id, "--output", str(tmp_path / "trace"))
    events = json.loads((tmp_path / "trace").read_text())["traceEvents"]
    assert {"create_model", "save_weights"} <= {event["name"] for event in events if event["ph"] == "b"}


def test_storage(alice: mint.ServiceClient, command: Command) -> None:
    run_of(alice).save_state("stored").result(SECONDS)
    (row,) = command.json("billing", "checkpoint-storage", "--project-id", "default")["data"]
    assert row["checkpoint_count"] >= 1
    assert row["size_bytes"] > 0
    assert "default" in command.ok("billing", "checkpoint-storage")


def test_as_a_process(command: Command, live: LiveServer) -> None:
    variables = environment(live.folder, **command.environment)
    started = [sys.executable, "-m", "tinker.cli", "checkpoint", "info", "tinker://nobody:train:0/weights/a"]
    done = subprocess.run(started, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode != 0
    assert "nobody:train:0 does not exist" in done.stderr
