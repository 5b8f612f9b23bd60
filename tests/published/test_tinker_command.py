"""The `tinker` command as it is installed, over what a program has left."""

from __future__ import annotations

import json

import pytest

import mint

from ..server.live import ALICE
from ..server.sdk import SECONDS
from .conftest import Programs
from .hub import MODEL


@pytest.mark.slow
def test_runs_and_checkpoints_from_the_shell(programs: Programs) -> None:
    with mint.ServiceClient(base_url=programs.server.url, api_key=ALICE) as service:
        run = service.create_lora_training_client(MODEL, rank=4).result(SECONDS)
        path = run.save_state("by-hand").result(SECONDS).path
    listed = json.loads(programs.run("tinker.cli", "--format", "json", "run", "list", "--limit", "0"))
    assert run.model_id in [row["training_run_id"] for row in listed["runs"]]
    info = json.loads(programs.run("tinker.cli", "--format", "json", "checkpoint", "info", path))
    assert (info["checkpoint_id"], info["lora_rank"]) == ("weights/by-hand", 4)
    programs.run("tinker.cli", "checkpoint", "delete", "--yes", path)
    rows = json.loads(programs.run("tinker.cli", "--format", "json", "checkpoint", "list", "--run-id", run.model_id))
    assert rows["checkpoints"] == []
