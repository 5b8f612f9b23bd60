"""A database in a file of its own, and a way to use it from plain functions."""

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


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path / "mint.db")
    yield opened
    opened.close()


@pytest.fixture
def transact(database: Database) -> Transact[Any]:
    """Run a function in a transaction."""
    return lambda work: asyncio.run(database.transaction(work))
