"""Rows of earlier versions are still what they were."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, NullPool, create_engine, select

from mint.store import database as module
from mint.store import journal, repository
from mint.store.database import Database
from mint.store.schema import Checkpoint, Run, Session, discarded

RUN = "s:train:0"
SHAPE = "'base', 4, true, true, false"


BEFORE = "0003_rollout_correction"


def migrate(url: str, way: Callable[[Config, str], None]) -> None:
    """To the version before this one, up or down."""
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    with create_engine(url, poolclass=NullPool).begin() as connection:
        config.attributes["connection"] = connection
        way(config, BEFORE)


@pytest.fixture
def old(empty_url: str) -> str:
    """A database of the version before checkpoints had kinds: one of each kind, one overwritten, and who reads them."""
    migrate(empty_url, command.upgrade)
    shape = "base_model, lora_rank, train_attn, train_mlp, train_unembed"
    operation = "request_id, stream, seq_id, owner, kind, status, payload_type, payload, created_at, facts"
    rows = [
        "INSERT INTO sessions (session_id, owner, created_at, last_heartbeat) VALUES ('s', 'me', 1, 1)",
        f"INSERT INTO runs (run_id, session_id, owner, created_at, {shape}) VALUES ('{RUN}', 's', 'me', 1, {SHAPE})",
    ]
    for name, place in {"a": "weights/a", "b": "sampler_weights/b", "c": None, "overwritten": None}.items():
        named = f"'tinker://{RUN}/{place}'" if place is not None else "NULL"
        columns = f"checkpoint_id, path, run_id, owner, directory, size_bytes, created_at, {shape}"
        rows.append(
            f"INSERT INTO checkpoints ({columns}) VALUES ('{name}', {named}, '{RUN}', 'me', '{name}', 1, 1, {SHAPE})"
        )
    rows.append(
        "INSERT INTO samplers (sampler_id, session_id, session_seq_id, owner, base_model, created_at, directory) "
        "VALUES ('s:sample:0', 's', 0, 'me', 'base', 1, 'c')"
    )
    for seq_id, facts in enumerate(('{"directory": "a"}', '{"reference": "b"}', '{"reference": null}', "{}")):
        rows.append(
            f"INSERT INTO operations ({operation}) "
            f"VALUES ('r{seq_id}', '{RUN}', {seq_id}, 'me', 'load_weights', 'done', '', '', 1, '{facts}')"
        )
    with create_engine(empty_url, poolclass=NullPool).begin() as connection:
        for row in rows:
            connection.exec_driver_sql(row)
    return empty_url


def test_what_was_there_before_there_were_kinds(old: str) -> None:
    database = Database(old)

    def read(connection: Connection) -> None:
        kinds = {name: repository.find(connection, Checkpoint, checkpoint_id=name).kind for name in "abc"}
        assert kinds == {"a": "training", "b": "sampler", "c": "sampler"}
        assert repository.find(connection, Checkpoint, checkpoint_id="c").session_id == "s"
        assert repository.find(connection, Checkpoint, checkpoint_id="overwritten") is None
        assert list(connection.scalars(select(discarded.c.directory))) == ["overwritten"]
        read_by = [journal.find(connection, f"r{number}").directory for number in range(4)]
        assert read_by == ["a", "b", None, None]
        assert repository.find(connection, Run, run_id=RUN).copied is False
        assert repository.find(connection, Session, session_id="s").project_id == "default"

    asyncio.run(database.transaction(read))
    database.close()


def test_the_way_back(old: str) -> None:
    Database(old).close()
    migrate(old, command.downgrade)
    Database(old).close()
