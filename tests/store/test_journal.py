"""The operation journal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mint.store import journal
from mint.store.schema import Status

from .conftest import Transact
from .rows import operation


def test_append_is_idempotent_by_stream_and_number(transact: Transact[Any]) -> None:
    first = operation()
    assert transact(lambda c: journal.append(c, first)) is first
    again = transact(lambda c: journal.append(c, operation(request_id="r2", payload=b"other")))
    assert again == replace(first, payload=b"")
    assert transact(lambda c: journal.find(c, "r2")) is None


def test_numbers_belong_to_their_stream(transact: Transact[Any]) -> None:
    for number, stream in enumerate(("a", "b")):
        mine = operation(request_id=f"r{number}", stream=stream)
        assert transact(lambda c, mine=mine: journal.append(c, mine)) is mine


def test_every_field_comes_back(transact: Transact[Any]) -> None:
    facts = {"model": "ä", "lora": {"rank": 8, "seed": 2**62}, "directory": None}
    stored = operation(payload=bytes(range(256)), seq_id=2**63 - 1, facts=facts)
    transact(lambda c: journal.append(c, stored))
    assert transact(journal.pending) == [stored]


def test_a_result_is_written_once_found_often(transact: Transact[Any]) -> None:
    transact(lambda c: journal.append(c, operation()))
    transact(lambda c: journal.finish(c, "r1", Status.DONE, "text/plain", b"result"))
    for _ in range(2):
        found = transact(lambda c: journal.find(c, "r1"))
        assert (found.status, found.result_type, found.result) == (Status.DONE, "text/plain", b"result")
        assert found.finished_at is not None
    assert transact(journal.pending) == []


def test_pending_and_finished_are_in_order(transact: Transact[Any]) -> None:
    for seq_id in (3, 1, 2, 0):
        for stream in ("b", "a"):
            mine = operation(request_id=f"{stream}{seq_id}", stream=stream, seq_id=seq_id)
            transact(lambda c, mine=mine: journal.append(c, mine))
    for seq_id, status in ((0, Status.DONE), (2, Status.FAILED)):
        transact(lambda c, s=seq_id, status=status: journal.finish(c, f"a{s}", status, "t", b""))
    pending = [o.request_id for o in transact(journal.pending)]
    assert pending == ["a1", "a3", "b0", "b1", "b2", "b3"]
    finished = transact(lambda c: journal.finished(c, "a", -1))
    assert [(o.seq_id, o.status) for o in finished] == [(0, Status.DONE), (2, Status.FAILED)]
    assert finished[0].payload == b"{}"
