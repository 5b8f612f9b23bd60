"""Keys, tokens, limits and usage as the official SDK and its command line meet them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

import mint
from mint.server.auth import LOOK_SECONDS
from tests.programs import check_done

from .live import LiveServer, environment, tiny_model
from .sdk import SECONDS, batch, datum, run_of, tokens_of


def command(server: LiveServer, *arguments: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of a user who has a home folder of their own."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(server.folder / "home", TINKER_BASE_URL=server.url, **variables),
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def tinker_cli(server: LiveServer, *arguments: str, text: str = "", key: str | None = None) -> str:
    """What `tinker` says."""
    variables = {"TINKER_API_KEY": f"tml-{key.removeprefix('sk-')}"} if key is not None else {}
    done = command(server, "-m", "tinker.cli", *arguments, text=text, **variables)
    check_done(done)
    return done.stdout


def mint_keys(server: LiveServer, *arguments: str) -> Any:
    folder = str(server.folder / "data")
    done = command(server, "-m", "mint.cli", "keys", *arguments, "--data-dir", folder, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OPTIONS = "--jwt-auth", "--log-format", "json", "--log-level", "info"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Started with no key at all; they are made while it runs."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "home").mkdir()
    started = LiveServer(folder, "--model", tiny_model(folder), *OPTIONS, keys=()).start()
    yield started
    assert started.stop() == 0, started.output
    assert "Traceback" not in started.output


def service(server: LiveServer, key: str) -> mint.ServiceClient:
    return mint.ServiceClient(base_url=server.url, api_key=key)


def rest_client(server: LiveServer, key: str) -> tinker.RestClient:
    return tinker.RestClient(base_url=server.url, api_key=key)


def test_a_key_made_beside_a_running_server_trains_through_tokens(server: LiveServer) -> None:
    made = mint_keys(server, "create", "--owner", "ada@lab.org")
    with service(server, made["key"]) as client:
        run = run_of(client)
        run.forward_backward(batch(1), "cross_entropy").result(SECONDS)
    whose = rest_client(server, made["key"]).whoami().result(SECONDS)
    assert (whose.user_urn, whose.org_urn, whose.email) == (
        "ada@lab.org",
        "tml:organization:ada@lab.org",
        "ada@lab.org",
    )
    assert "ada@lab.org" in tinker_cli(server, "auth", "whoami", key=made["key"])


def test_a_revoked_key_is_refused_with_its_tokens(server: LiveServer) -> None:
    made = mint_keys(server, "create")
    rest = rest_client(server, made["key"])
    assert rest.get_server_capabilities().result(SECONDS).supported_models
    assert mint_keys(server, "revoke", str(made["key_id"]))["state"] == "was revoked"
    time.sleep(LOOK_SECONDS)
    with pytest.raises(tinker.AuthenticationError):
        rest.get_server_capabilities().result(SECONDS)


def test_the_command_line_logs_in_and_out(server: LiveServer) -> None:
    made = mint_keys(server, "create", "--owner", "lab", "--note", "laptop")
    said = tinker_cli(server, "auth", "login", text=f"tml-{made['key'].removeprefix('sk-')}\n")
    assert "Logged in as lab (lab). Stored API key 'laptop'" in said
    assert "Tinker accessible: yes" in tinker_cli(server, "auth", "status")
    stored = server.folder / "home" / ".tinker" / "credentials.json"
    record = json.loads(stored.read_text())
    # a key that the command line counts as its own is deleted with it
    entry = record["keys"][str(made["key_id"])]
    entry["type"] = "generated"
    del entry["note"]
    stored.write_text(json.dumps(record))
    assert "deleted its API key on the server" in tinker_cli(server, "auth", "logout")
    states = {key["key_id"]: key["state"] for key in mint_keys(server, "list")}
    assert states[made["key_id"]] == "was revoked"


def test_limits_are_met_as_the_sdk_expects(server: LiveServer) -> None:
    limits = ("--max-live-runs", "1", "--max-stored-bytes", "1", "--max-queued-operations", "3")
    made = mint_keys(server, "create", *limits, "--requests-per-second", "4")
    with service(server, made["key"]) as client:
        run = run_of(client)
        with pytest.raises(tinker.PermissionDeniedError, match="max_live_runs"):
            run_of(client)
        run.save_state("one").result(SECONDS)
        with pytest.raises(tinker.PermissionDeniedError, match="max_stored_bytes"):
            run.save_state("two").result(SECONDS)
        # more than the queue takes and faster than allowed: the SDK waits and sends again, and nobody notices
        started = time.monotonic()
        futures = [run.forward_backward(batch(number), "cross_entropy") for number in range(12)]
        futures.append(run.optim_step(mint.types.AdamParams(learning_rate=1e-3)))
        for future in futures:
            future.result(SECONDS)
        assert time.monotonic() - started > (len(futures) - 4) / 4


def test_usage_and_audit_are_what_the_admin_client_reads(server: LiveServer) -> None:
    admin, user = mint_keys(server, "create", "--role", "admin"), mint_keys(server, "create", "--owner", "counted")
    tokens = tokens_of(3, 21)
    with service(server, user["key"]) as client:
        run = run_of(client)
        run.forward_backward([datum(tokens)], "cross_entropy").result(SECONDS)
        path = run.save_state("kept").result(SECONDS).path
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    span = start.isoformat(), (start + timedelta(hours=3)).isoformat()
    client = tinker.AdminClient(base_url=server.url, api_key=admin["key"])
    usage = client.get_billing_usage(*span).result(SECONDS)
    training = [
        event.event_info.token_count
        for event in usage.data
        if event.user_id == "counted" and event.event_info.type == "training"
    ]
    assert training == [20]
    storage = client.get_current_checkpoint_storage_usage().result(SECONDS)
    (stored,) = [item for item in storage.data if item.org_user_urn == "counted"]
    assert stored.checkpoint_count == 1
    assert stored.size_bytes > 1000
    log = client.get_audit_log().result(SECONDS).entries
    mine = [entry for entry in log if entry.event_details["owner"] == "counted"]
    assert [entry.event for entry in mine][:1] == ["key_create"]
    assert [entry.event_details["path"] for entry in mine if entry.event == "checkpoint_save"] == [path]
    shown = tinker_cli(server, "billing", "usage", *span, key=admin["key"])
    assert "hourly usage row" in shown
    assert "Current checkpoint storage" in tinker_cli(server, "billing", "checkpoint-storage", key=admin["key"])


def test_the_key_of_the_machine_reads_the_metrics(server: LiveServer) -> None:
    key = (server.folder / "data" / "local_key").read_text()
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS)
    assert 'mint_operations_total{kind="forward_backward",outcome="done"}' in answer.text
    assert httpx.get(f"{server.url}/readyz", timeout=SECONDS).json()["status"] == "ready"


def test_log_lines_are_json(server: LiveServer) -> None:
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    passes = [line for line in lines if line.get("path") == "/api/v1/forward_backward" and line["status"] == 200]
    assert passes
    assert all(line["run_id"].endswith(":train:0") and line["request_id"].startswith("req-") for line in passes)
    loggers = {line["logger"] for line in lines}
    assert {"mint.access", "uvicorn.error"} <= loggers
    others = [line for line in server.lines if not line.startswith("{") and line.strip()]
    assert not [line for line in others if " INFO " in line or "Traceback" in line]


def test_nothing_secret_is_in_the_folder_or_the_log(server: LiveServer) -> None:
    made = mint_keys(server, "create", "--note", "looked for")
    secret = made["key"].removeprefix("sk-").encode()
    files = [path for path in (server.folder / "data").rglob("*") if path.is_file()]
    assert not [path for path in files if secret in path.read_bytes()]
    assert secret.decode() not in server.output
    assert any(b"looked for" in path.read_bytes() for path in files if path.name.startswith("mint.db"))
    assert Path(server.folder / "data" / "token_secret").stat().st_mode & 0o077 == 0
