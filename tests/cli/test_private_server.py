"""A server of one's own has stores of its own."""

from __future__ import annotations

from typing import Any

import pytest

from mint.cli.private_server import private_server


def test_stores_of_another_server_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = []

    def start(_command: list[str], *, env: dict[str, str], **_: Any) -> None:
        environments.append(env)
        raise OSError("not started")

    monkeypatch.setenv("MINT_DATABASE_URL", "postgresql+psycopg://db.example.com/mint")
    monkeypatch.setenv("MINT_CHECKPOINT_STORE", "s3://bucket")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setattr("mint.cli.private_server.subprocess.Popen", start)
    with pytest.raises(OSError, match="not started"), private_server():
        pass
    assert environments[0]["HF_HOME"] == "/models"
    assert not {"MINT_DATABASE_URL", "MINT_CHECKPOINT_STORE"} & environments[0].keys()
