"""Results in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mint.server import results as module
from mint.server.results import Results
from mint.store.schema import Operation, Status
from tests.store.rows import operation


def finished(name: str, size: int = 10) -> Operation:
    return replace(operation(request_id=name), status=Status.DONE, result=bytes(size))


def test_who_waits_is_woken_with_the_result() -> None:
    async def scene() -> None:
        results = Results()
        results.expect(operation(request_id="a"))
        waiting = [asyncio.create_task(results.wait("a", 60)) for _ in range(3)]
        await asyncio.sleep(0)
        results.put(finished("a"))
        assert await asyncio.gather(*waiting) == [finished("a")] * 3
        assert await results.wait("a", 60) == results.find("a") == finished("a")

    asyncio.run(scene())


def test_a_wait_ends() -> None:
    async def scene() -> None:
        results = Results()
        results.expect(operation(request_id="a"))
        pending = await results.wait("a", 0.01)
        assert pending is not None
        assert pending.status == Status.PENDING
        assert await results.wait("unknown", 60) is None
        waiting = asyncio.create_task(results.wait("a", 60))
        await asyncio.sleep(0)
        results.close()
        assert (await waiting) == pending == await results.wait("a", 60)

    asyncio.run(scene())


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    monkeypatch.setattr(module, "KEPT_BYTES", 100)
    results = Results()
    for name in "abcd":
        results.put(finished(name))
    assert [results.find(name) is not None for name in "abcd"] == [False, True, True, True]
    results.put(finished("large", 95))
    assert [results.find(name) is not None for name in ("b", "c", "d", "large")] == [False, False, False, True]
    results.put(finished("larger", 1000))
    assert results.find("larger") is None
    results.put(finished("e"))
    assert results.find("e") is not None
