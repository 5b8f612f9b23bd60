"""Names of folders, and folders that have lost theirs."""

from __future__ import annotations

from functools import partial
from time import time
from typing import Any

import pytest
from sqlalchemy import Connection, select

from mint.store import checkpoints, journal, repository
from mint.store.schema import Checkpoint, Status, discarded

from .conftest import Transact
from .rows import checkpoint, insert_run, operation, run, sampler, session

PATH = "tinker://s:train:0/weights/a"
REPLAYED = {"load_weights"}
RECENTLY = time() - 300
BEFORE_THAT = RECENTLY - 300
LONG_AGO = time() - 2 * checkpoints.ABANDONED_SECONDS


@pytest.fixture(autouse=True)
def _rows(transact: Transact[Any]) -> None:
    transact(insert_run)


def put(transact: Transact[Any], *, overwrite: bool = False, **fields: Any) -> bool:
    return transact(lambda c: checkpoints.put(c, checkpoint(**fields), overwrite=overwrite))


def live(transact: Transact[Any], path: str = PATH) -> str | None:
    """The folder of that path."""
    found = transact(lambda c: checkpoints.live(c, path))
    return found.directory if found is not None else None


def discards(connection: Connection) -> list[str]:
    return list(connection.scalars(select(discarded.c.directory)))


def deletable(transact: Transact[Any], *held: str) -> list[str]:
    return transact(partial(checkpoints.deletable, replayed=REPLAYED, held=held, limit=10))


def test_a_taken_path_is_kept_unless_overwritten(transact: Transact[Any]) -> None:
    assert put(transact)
    second = {"checkpoint_id": "c2", "directory": "c2"}
    assert not put(transact, **second)
    assert live(transact) == "c1"
    assert put(transact, overwrite=True, **second)
    assert live(transact) == "c2"
    assert transact(lambda c: repository.find(c, Checkpoint, checkpoint_id="c1")) is None
    assert transact(discards) == ["c1"]


def test_an_expired_checkpoint_is_not_there(transact: Transact[Any]) -> None:
    put(transact, expires_at=time() - 1)
    assert live(transact) is None
    assert put(transact, checkpoint_id="c2", directory="c2", expires_at=time() + 60)
    assert live(transact) == "c2"
    assert transact(discards) == ["c1"]


def test_checkpoints_without_a_path_do_not_collide(transact: Transact[Any]) -> None:
    for name in ("c1", "c2"):
        assert put(transact, checkpoint_id=name, directory=name, path=None)


def test_expiry_takes_what_has_expired_and_no_more_than_asked(transact: Transact[Any]) -> None:
    now = time()
    for name, expires_at in {"a": now - 2, "b": now - 1, "c": now + 60, "d": None}.items():
        put(transact, checkpoint_id=name, directory=name, path=f"{PATH}-{name}", expires_at=expires_at)
    assert [transact(partial(checkpoints.expire, limit=1)) for _ in range(3)] == [1, 1, 0]
    assert [live(transact, f"{PATH}-{name}") for name in "abcd"] == [None, None, "c", "d"]
    assert sorted(deletable(transact)) == ["a", "b"]
    assert deletable(transact, "a", "c") == ["b"]
    transact(partial(checkpoints.deleted, directories=["a", "b"]))
    assert transact(discards) == []


def test_a_folder_with_two_names_loses_both_before_it_goes(transact: Transact[Any]) -> None:
    copy = checkpoint(checkpoint_id="copy", path=f"{PATH}-copy")
    put(transact)
    transact(lambda c: checkpoints.put(c, copy))
    assert transact(lambda c: checkpoints.shared(c, copy))
    transact(lambda c: checkpoints.remove(c, checkpoint()))
    assert not transact(lambda c: checkpoints.shared(c, copy))
    assert deletable(transact) == []
    transact(lambda c: checkpoints.remove(c, copy))
    assert deletable(transact) == ["c1"]


@pytest.mark.parametrize("who", ["sampler", "operation", "run"])
def test_a_folder_that_is_read_stays_until_it_is_not(transact: Transact[Any], who: str) -> None:
    put(transact)
    transact(lambda c: repository.touch_session(c, "s"))
    readers = {
        "sampler": ("s:sample:0", lambda c: repository.insert(c, sampler(directory="c1", model_path=PATH))),
        "operation": ("r1", lambda c: journal.insert(c, operation(directory="c1", kind="sample", stream="other"))),
        "run": (
            "s:train:0",
            lambda c: journal.insert(c, operation(directory="c1", kind="load_weights", status=Status.DONE)),
        ),
    }
    name, read = readers[who]
    transact(read)
    reader = partial(checkpoints.reader, checkpoint=checkpoint(), replayed=REPLAYED, heard_since=RECENTLY)
    assert transact(reader) == f"{who} {name}"
    assert transact(partial(reader, checkpoint=checkpoint(owner="another"))) is None
    assert transact(partial(reader, checkpoint=checkpoint(directory="another"))) is None
    transact(lambda c: checkpoints.remove(c, checkpoint()))
    assert deletable(transact) == []
    if who == "operation":
        transact(lambda c: journal.finish(c, "r1", Status.DONE, "", b""))
    else:
        transact(lambda c: repository.finish_session(c, "s", "success", None))
    assert transact(reader) is None
    assert deletable(transact) == ["c1"]


def test_what_is_not_run_again_does_not_keep_a_folder(transact: Transact[Any]) -> None:
    put(transact)
    transact(lambda c: repository.touch_session(c, "s"))
    transact(lambda c: journal.insert(c, operation(directory="c1", kind="sample", status=Status.DONE)))
    transact(lambda c: journal.insert(c, operation(request_id="r2", seq_id=2, kind="load_weights")))
    assert (
        transact(partial(checkpoints.reader, checkpoint=checkpoint(), replayed=REPLAYED, heard_since=RECENTLY)) is None
    )


def test_a_silent_client_does_not_refuse_and_an_abandoned_one_does_not_keep(transact: Transact[Any]) -> None:
    for name, last_heartbeat in {"silent": BEFORE_THAT, "abandoned": LONG_AGO}.items():
        transact(lambda c, n=name, h=last_heartbeat: repository.insert(c, session(session_id=n, last_heartbeat=h)))
        mine = sampler(sampler_id=name, session_id=name, directory=name, model_path=PATH)
        transact(lambda c, mine=mine: repository.insert(c, mine))
        row = checkpoint(checkpoint_id=name, directory=name, path=f"{PATH}-{name}")
        transact(lambda c, row=row: checkpoints.put(c, row))
        assert transact(partial(checkpoints.reader, checkpoint=row, replayed=REPLAYED, heard_since=RECENTLY)) is None
        transact(lambda c, row=row: checkpoints.remove(c, row))
    assert deletable(transact) == ["abandoned"]


def test_a_run_that_may_be_replayed_keeps_its_source_however_silent(transact: Transact[Any]) -> None:
    transact(lambda c: repository.insert(c, session(session_id="old", last_heartbeat=LONG_AGO)))
    transact(lambda c: repository.insert(c, run(run_id="old:train:0", session_id="old")))
    load = operation(stream="old:train:0", directory="c1", kind="load_weights", status=Status.DONE)
    transact(lambda c: journal.insert(c, load))
    put(transact)
    transact(lambda c: checkpoints.remove(c, checkpoint()))
    assert deletable(transact) == []


def test_revisions_without_a_name_go_with_their_session(transact: Transact[Any]) -> None:
    transact(lambda c: repository.touch_session(c, "s"))
    transact(lambda c: repository.insert(c, session(session_id="other")))
    for number, session_id in enumerate(["s", "s", "other"]):
        mine = sampler(sampler_id=f"{number}", session_id=session_id, session_seq_id=number, directory=f"{number}")
        transact(lambda c, mine=mine: repository.insert(c, mine))
        put(transact, checkpoint_id=f"{number}", directory=f"{number}", path=None, session_id=session_id)
    put(transact)
    forget = partial(checkpoints.forget_unnamed, session_id="s", limit=1)
    assert [transact(forget) for _ in range(3)] == [1, 1, 0]
    assert sorted(deletable(transact)) == ["0", "1"]
    assert live(transact) == "c1"


def test_what_a_snapshot_has_made_needless_keeps_no_folder(transact: Transact[Any]) -> None:
    transact(lambda c: repository.touch_session(c, "s"))
    put(transact)
    for number in (1, 3):
        load = operation(
            request_id=f"r{number}", seq_id=number, directory="c1", kind="load_weights", status=Status.DONE
        )
        transact(lambda c, load=load: journal.insert(c, load))
    transact(lambda c: checkpoints.remove(c, checkpoint()))
    transact(partial(journal.drop_payloads, stream="s:train:0", up_to=2))
    assert deletable(transact) == []
    transact(partial(journal.drop_payloads, stream="s:train:0", up_to=3))
    assert deletable(transact) == ["c1"]


def test_which_folders_a_row_knows(transact: Transact[Any]) -> None:
    put(transact, directory="named")
    put(transact, checkpoint_id="c2", path=f"{PATH}-2", directory="discarded")
    transact(lambda c: checkpoints.remove(c, checkpoint(checkpoint_id="c2", directory="discarded")))
    transact(lambda c: journal.insert(c, operation(request_id="pending")))
    transact(lambda c: journal.insert(c, operation(request_id="failed", seq_id=2, status=Status.FAILED)))
    names = ["named", "discarded", "pending", "failed", "unknown"]
    assert transact(partial(checkpoints.accounted_for, directories=names)) == {"named", "discarded", "pending"}
    assert transact(partial(checkpoints.being_written, directories=names)) == {"pending"}
