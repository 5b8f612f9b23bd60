"""Large answers: written off the event loop, in pieces."""

from __future__ import annotations

import json
from threading import current_thread, main_thread
from typing import Any

import pytest

from mint.server import large_json
from mint.server.operations.sampling import AsyncSample
from mint.server.routes import futures

from .inprocess import MODEL, Serve, play

SAMPLE = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}, "base_model": MODEL}
ROWS = [[(i, i / 3) for i in range(200)], None, [(1, -0.5)]]
VALUES: list[Any] = [
    {},
    [],
    list(range(1000)),
    {"ü": [{"a": ROWS}, {"b": list(range(64)), "c": [None] * 65}], "d": {"e": ["x\n"] * 130}},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_pieces_are_the_same_json(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, dumps, longest = json.dumps(value, ensure_ascii=False), json.dumps, 0

    def measured(piece: Any, **options: Any) -> str:
        nonlocal longest
        longest = max(longest, len(piece) if isinstance(piece, list) else 0)
        return dumps(piece, **options)

    monkeypatch.setattr(json, "dumps", measured)
    assert large_json.encode(value) == expected
    assert longest <= large_json.PIECE


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_large_result_is_converted_in_a_thread(serve: Serve, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    async def scene() -> None:
        async with serve() as world:
            answer = await world.alice.result("asample", SAMPLE)
            assert len(answer["sequences"]) == 1
            assert threads == [limit > 0]

    threads: list[bool] = []
    convert = futures.sample_as_json

    def watched(body: bytes) -> dict[str, Any]:
        threads.append(current_thread() is main_thread())
        return convert(body)

    monkeypatch.setattr(futures, "sample_as_json", watched)
    monkeypatch.setattr(futures, "LARGE_RESULT", limit)
    play(scene)


def test_a_fault_in_finishing_is_told(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            failed = await world.alice.result("asample", SAMPLE)
            assert failed == {"error": "an error of the server; its log says more", "category": "server"}
            monkeypatch.undo()
            assert "sequences" in await world.alice.result("asample", SAMPLE)

    def broken(*_: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(AsyncSample, "finish", broken)
    play(scene)
