"""`mint keys`: what it writes, what it shows, what it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import time
from typing import Any

import pytest
from typer.testing import CliRunner

from mint.cli.holding import held
from mint.cli.main import app
from mint.config import ServerConfig
from mint.errors import MintError
from mint.server.auth import digest_of, own_tenant
from mint.store import audit, keys
from mint.store.database import Database


def mint(folder: Path, *arguments: str, code: int = 0) -> Any:
    """stdout, and stderr for what is refused."""
    result = CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(folder / "data")], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def as_json(folder: Path, *arguments: str) -> Any:
    return json.loads(mint(folder, *arguments, "--json"))


def stored(folder: Path) -> tuple[list[keys.Key], list[audit.Entry]]:
    database = Database.at(folder / "data" / "mint.db")
    try:
        rows = asyncio.run(database.transaction(keys.all_keys))
        return rows, asyncio.run(database.transaction(lambda c: audit.entries(c, 0, time() + 1)))
    finally:
        database.close()


def test_a_key_is_made_shown_and_ended(tmp_path: Path) -> None:
    secret = mint(tmp_path, "create").strip()
    limits = ["--max-live-runs", "2", "--max-queued-operations", "100", "--max-stored-bytes", "5000000000"]
    limits += ["--requests-per-second", "2.5"]
    made = as_json(
        tmp_path, "create", "--owner", "lab", "--role", "admin", "--note", "[red]CI", "--expires", "90d", *limits
    )
    (first, second), log = stored(tmp_path)
    assert (first.digest, first.owner) == (digest_of(secret), own_tenant(digest_of(secret)))
    assert (first.role, first.expires_at, first.max_live_runs, first.note) == ("user", None, None, "")
    assert (second.digest, second.owner, second.role) == (digest_of(made["key"]), "lab", "admin")
    assert second.expires_at == pytest.approx(time() + 90 * 86400, abs=60)
    assert (second.max_live_runs, second.max_queued_operations) == (2, 100)
    assert (second.max_stored_bytes, second.requests_per_second) == (5_000_000_000, 2.5)
    assert [(entry.event, entry.details["key_id"]) for entry in log] == [("key_create", 1), ("key_create", 2)]

    listed = as_json(tmp_path, "list")
    assert listed == [{**listed[0], "key_id": 1, "state": "holds"}, {k: v for k, v in made.items() if k != "key"}]
    assert not any("digest" in key for key in listed)
    table = mint(tmp_path, "list")
    for shown in ("lab", "admin", "[red]CI", "max_live_runs 2", "requests_per_second 2.5", "holds", "until"):
        assert shown in table
    assert secret not in table

    assert as_json(tmp_path, "revoke", "1")["state"] == "was revoked"
    assert "key 2 of lab is revoked" in mint(tmp_path, "revoke", "2")
    rows, log = stored(tmp_path)
    assert [key.ended for key in rows] == ["was revoked", "was revoked"]
    assert [entry.event for entry in log[2:]] == ["key_revoke", "key_revoke"]


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    mint(tmp_path, "create")
    before = stored(tmp_path)
    for arguments, code, said in (
        (("create", "--owner", "a b"), 1, "--owner must be"),
        (("create", "--owner", ""), 1, "--owner must be"),
        (("create", "--expires", "soon"), 1, "--expires must read"),
        (("create", "--expires", "0d"), 1, "--expires must read"),
        (("create", "--max-live-runs", "-1"), 2, "max-live-runs"),
        (("create", "--requests-per-second", "0"), 2, "requests-per-second"),
        (("create", "--role", "root"), 2, "role"),
        (("revoke", "7"), 1, "no key 7"),
    ):
        assert said in mint(tmp_path, *arguments, code=code), arguments
    assert stored(tmp_path) == before


def test_a_database_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mint.db").write_text("no database" * 100)
    assert "file is not a database" in mint(tmp_path, "list", code=1)


def test_listing_and_revoking_make_no_folder(tmp_path: Path) -> None:
    for arguments in (("list",), ("list", "--json"), ("revoke", "1")):
        assert "no server's folder: it has no mint.db" in mint(tmp_path, *arguments, code=1)
    assert not (tmp_path / "data").exists()


def test_a_server_may_face_the_world_once_there_is_a_key(tmp_path: Path) -> None:
    config = ServerConfig(data_dir=tmp_path / "data", models=(), host="0.0.0.0", port=0)

    def held_without_key() -> bool:
        with held(config) as mine:
            mine.database.close()
            mine.listener.close()
            return mine.config.admin_keys == ()

    with pytest.raises(MintError, match="mint keys create"):
        held_without_key()
    assert not config.data_dir.exists()
    mint(tmp_path, "create")
    assert held_without_key()
    mint(tmp_path, "revoke", "1")
    with pytest.raises(MintError, match="mint keys create"):
        held_without_key()
    assert not (config.data_dir / "local_key").exists()


def test_the_database_is_not_opened_while_another_server_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mint(tmp_path, "create")
    config = ServerConfig(data_dir=tmp_path / "data", models=(), host="0.0.0.0", port=0)
    with held(config) as mine:
        mine.listener.close()
        monkeypatch.setattr("mint.server.app.open_database", lambda _: pytest.fail("it was opened"))
        with pytest.raises(OSError, match="in use by another"), held(config):
            pass
        mine.database.close()
