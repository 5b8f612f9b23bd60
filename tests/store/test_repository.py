"""Sessions, runs, checkpoints and samplers."""

from __future__ import annotations

from time import time
from typing import Any

from mint.store import repository
from mint.store.schema import Checkpoint, CustomLoss, Run, Sampler, Session

from .conftest import Transact
from .rows import checkpoint, insert_run, run, sampler, session

PATH = "tinker://s:train:0/weights/a"


def test_rows_come_back(transact: Transact[Any]) -> None:
    transact(lambda c: repository.insert(c, session(tags=["a"], user_metadata={"x": [1, None]})))
    transact(lambda c: repository.insert(c, run(lora_seed=2**62)))
    assert transact(lambda c: repository.find(c, Session, session_id="s")).user_metadata == {"x": [1, None]}
    assert transact(lambda c: repository.find(c, Run, run_id="s:train:0")) == run(lora_seed=2**62)
    assert transact(lambda c: repository.find(c, Run, run_id="other")) is None


def test_a_custom_loss_comes_back(transact: Transact[Any]) -> None:
    graph = {
        "format": 1,
        "inputs": [{"name": "logprobs", "rank": 1}],
        "nodes": [{"args": [{"float": "inf"}, 0.1, None]}],
    }
    loss = CustomLoss("s:loss:0", "s", "me", "<lambda>", graph, 1.0)
    transact(lambda c: repository.insert(c, session()))
    transact(lambda c: repository.insert(c, loss))
    assert transact(lambda c: repository.find(c, CustomLoss, loss_id="s:loss:0")) == loss
    assert transact(lambda c: repository.find(c, CustomLoss, loss_id="s:loss:1")) is None


def test_a_session_is_told_by_its_idempotency_key(transact: Transact[Any]) -> None:
    first = transact(lambda c: repository.put_session(c, session(idempotency_key="k")))
    again = transact(lambda c: repository.put_session(c, session(session_id="s2", idempotency_key="k")))
    assert again == first
    other = transact(lambda c: repository.put_session(c, session(session_id="s3", owner="you", idempotency_key="k")))
    assert other.session_id == "s3"
    for name in ("s4", "s5"):
        assert transact(lambda c, n=name: repository.put_session(c, session(session_id=n))).session_id == name


def test_the_first_reason_to_finish_stands(transact: Transact[Any]) -> None:
    transact(insert_run)
    assert transact(lambda c: repository.finish_session(c, "s", "errored", "why"))
    assert not transact(lambda c: repository.finish_session(c, "s", "success", None))
    found = transact(lambda c: repository.find(c, Session, session_id="s"))
    assert (found.finish_reason, found.finish_detail) == ("errored", "why")
    assert transact(lambda c: repository.run_ids_of_session(c, "s")) == ["s:train:0"]


def test_a_heartbeat_is_noted(transact: Transact[Any]) -> None:
    transact(insert_run)
    transact(lambda c: repository.touch_session(c, "s"))
    assert transact(lambda c: repository.find(c, Session, session_id="s")).last_heartbeat > 1.0


def test_a_taken_path_is_kept_unless_overwritten(transact: Transact[Any]) -> None:
    transact(insert_run)
    assert transact(lambda c: repository.put_checkpoint(c, checkpoint()))
    second = checkpoint(checkpoint_id="c2", directory="c2")
    assert not transact(lambda c: repository.put_checkpoint(c, second))
    assert transact(lambda c: repository.live_checkpoint(c, PATH)).directory == "c1"
    assert transact(lambda c: repository.put_checkpoint(c, second, overwrite=True))
    assert transact(lambda c: repository.live_checkpoint(c, PATH)).directory == "c2"
    # whoever samples the old contents still finds them
    assert transact(lambda c: repository.find(c, Checkpoint, checkpoint_id="c1")).path is None


def test_an_expired_checkpoint_is_not_there(transact: Transact[Any]) -> None:
    transact(insert_run)
    transact(lambda c: repository.put_checkpoint(c, checkpoint(expires_at=time() - 1)))
    assert transact(lambda c: repository.live_checkpoint(c, PATH)) is None
    fresh = checkpoint(checkpoint_id="c2", directory="c2", expires_at=time() + 60)
    assert transact(lambda c: repository.put_checkpoint(c, fresh))
    assert transact(lambda c: repository.live_checkpoint(c, PATH)).directory == "c2"


def test_checkpoints_without_a_path_do_not_collide(transact: Transact[Any]) -> None:
    transact(insert_run)
    for name in ("c1", "c2"):
        mine = checkpoint(checkpoint_id=name, directory=name, path=None)
        assert transact(lambda c, mine=mine: repository.put_checkpoint(c, mine))


def test_a_number_of_a_session_is_one_sampler(transact: Transact[Any]) -> None:
    transact(insert_run)
    first = transact(lambda c: repository.put_sampler(c, sampler()))
    assert transact(lambda c: repository.put_sampler(c, sampler(base_model="other"))) == first
    assert transact(lambda c: repository.find(c, Sampler, sampler_id="s:sample:0")).base_model == "base"
