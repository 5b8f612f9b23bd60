"""Keys of the database, as `mint keys` makes them beside a running server."""

from __future__ import annotations

from time import time
from typing import Any

from mint.server.auth import LOOK_SECONDS, digest_of
from mint.store import keys
from mint.store.database import Database
from mint.store.keys import Key, Role

from .inprocess import Api, World


async def add(world: World, key: str, owner: str = "lab", **fields: Any) -> tuple[Api, Key]:
    """A client with a new key, written by a connection of its own."""
    row = Key(**{"digest": digest_of(key), "owner": owner, "role": Role.USER, "created_at": time(), **fields})
    created = await beside(world, lambda c: keys.create(c, row))
    await look(world)
    return Api(world.alice.http, key), created


async def beside(world: World, work: Any) -> Any:
    """A transaction as another process has it."""
    config = world.services.config
    database = Database(config.database_url or f"sqlite:///{config.data_dir / 'mint.db'}")
    try:
        return await database.transaction(work)
    finally:
        database.close()


async def look(world: World) -> None:
    """Let the time pass after which the server looks at its keys again."""
    world.services.keys._looked -= LOOK_SECONDS
