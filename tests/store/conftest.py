"""A database of each kind, and a way to use it from plain functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection

from mint.store.database import Database

T = TypeVar("T")
Transact = Callable[[Callable[[Connection], T]], T]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Whatever uses a database here is run on both kinds, unless it says on which."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    for name in ("database_url", "empty_url"):
        if name in metafunc.fixturenames and name not in chosen:
            metafunc.parametrize(name, ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return request.getfixturevalue("cluster").empty_database()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def transact(database: Database) -> Transact[Any]:
    """Run a function in a transaction."""
    return lambda work: asyncio.run(database.transaction(work))
