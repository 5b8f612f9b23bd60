"""Where bodies are read and planned: on the spot, or in a thread if that may take long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from mint.server.catalog import Catalog
from mint.server.images import may_have_images
from mint.server.operations.kind import Kind

T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY = 1 << 20
"""Bytes; reading and checking that much JSON takes some ten milliseconds, in which nobody else is answered."""

PLANNING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planning")
"""Reads and plans large bodies, and what is replayed; one at a time, since a parsed body is many times its size."""

DECODING = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoding")
"""The same of bodies that may have images, of which a few bytes can be many pixels: text need not wait for these."""


def pool_for(kind: Kind[Any], catalog: Catalog, body: bytes) -> Executor | None:
    """Where a body is read and planned; None is on the spot."""
    if kind.reads_images and catalog.sees and may_have_images(body):
        return DECODING
    return PLANNING if len(body) > LARGE_BODY else None


async def aside(pool: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What takes long is done in a thread, so that the event loop and the database go on for everyone else."""
    if pool is None:
        return function(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(pool, partial(function, *args, **kwargs))
