"""Sessions, runs, checkpoints and samplers."""

from __future__ import annotations

from typing import Any

from mint.store import repository
from mint.store.schema import CustomLoss, Run, Sampler, Session

from .conftest import Transact
from .rows import insert_run, run, sampler, session


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


def test_a_number_of_a_session_is_one_sampler(transact: Transact[Any]) -> None:
    transact(insert_run)
    first = transact(lambda c: repository.put_sampler(c, sampler()))
    assert transact(lambda c: repository.put_sampler(c, sampler(base_model="other"))) == first
    assert transact(lambda c: repository.find(c, Sampler, sampler_id="s:sample:0")).base_model == "base"
