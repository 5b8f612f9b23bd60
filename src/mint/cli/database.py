"""A server's database, for commands that look into it themselves, whether or not the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mint.cli.tables import stop
from mint.errors import MintError

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")


def transaction(data_dir: Path, database_url: str | None, work: Callable[[Connection], T], *, make: bool = False) -> T:
    """Do something to the database of a server; one in a folder is made only if that is said."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from mint.store.database import Database  # noqa: PLC0415

    folder = data_dir.expanduser().resolve()
    if database_url is None and not make and not (folder / "mint.db").exists():
        stop(f"{folder} is no server's folder: it has no mint.db; name another with --data-dir")
    try:
        if database_url is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = Database(database_url or f"sqlite:///{folder / 'mint.db'}")
        try:
            return asyncio.run(database.transaction(work))
        finally:
            database.close()
    except (OSError, SQLAlchemyError, MintError) as error:
        stop(str(getattr(error, "orig", None) or error))
