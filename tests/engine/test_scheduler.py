"""Which batch is next: order within a run, turns between runs, the token budget, the two sides' time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.engine.core import AdamParams, Datum, ForwardBackward, OptimStep, TrainingCommand
from mint.engine.scheduler import Passes, Scheduler, Single

BUDGET = 100


def a_pass(run: str, tokens: int = 10, *, forward_only: bool = False) -> ForwardBackward:
    return ForwardBackward(run, (Datum(np.zeros(tokens, np.int32), {}),), "cross_entropy", {}, forward_only)


def a_step(run: str) -> OptimStep:
    return OptimStep(run, AdamParams())


def batches(*commands: TrainingCommand) -> list[list[int]]:
    """The numbers (places in `commands`) of each batch, all queued before the first is taken."""
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    for number, command in enumerate(commands):
        scheduler.add(number, command)
    return [numbers for _, numbers in drain(scheduler)]


def drain(scheduler: Scheduler) -> list[tuple[list[TrainingCommand], list[int]]]:
    result = []
    while scheduler.has_training:
        work = scheduler.next_training()
        members = ((work.number, work.command),) if isinstance(work, Single) else work.members
        result.append(([command for _, command in members], [number for number, _ in members]))
    return result


def test_nothing_waits_at_first() -> None:
    assert not Scheduler(BUDGET, max_batch_runs=64).has_training


def test_passes_of_all_runs_share_a_batch() -> None:
    assert batches(a_pass("a"), a_pass("b"), a_pass("a"), a_pass("c")) == [[0, 2, 1, 3]]


def test_a_batch_keeps_the_order_within_a_run() -> None:
    assert batches(a_pass("a", 60), a_pass("a", 60), a_pass("a", 30)) == [[0], [1, 2]]


def test_barriers_hold_back_the_passes_behind_them() -> None:
    """A step belongs after the passes before it and before those behind it."""
    order = batches(a_pass("a"), a_step("a"), a_pass("a"), a_pass("b"))
    assert order == [[0, 3], [1], [2]]


def test_a_barrier_runs_by_itself() -> None:
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    scheduler.add(5, a_step("a"))
    work = scheduler.next_training()
    assert work == Single(5, a_step("a"))
    assert not scheduler.has_training


def test_other_runs_do_not_wait_for_a_barrier() -> None:
    assert batches(a_step("a"), a_pass("a"), a_step("b"), a_pass("b")) == [[0], [2], [1, 3]]


def test_kinds_are_not_mixed() -> None:
    evaluation = a_pass("b", forward_only=True)
    assert batches(a_pass("a"), evaluation, a_pass("c")) == [[0, 2], [1]]
    assert batches(evaluation, a_pass("a"), a_pass("b")) == [[0], [1, 2]]
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    scheduler.add(0, evaluation)
    assert isinstance(scheduler.next_training(), Passes)


def test_the_order_of_a_run_outranks_its_kinds() -> None:
    order = batches(a_pass("a"), a_pass("a", forward_only=True), a_pass("a"))
    assert order == [[0], [1], [2]]


def test_the_budget_ends_a_batch() -> None:
    assert batches(a_pass("a", 60), a_pass("b", 40), a_pass("c", 1)) == [[0, 1], [2]]
    assert batches(a_pass("a", 60), a_pass("b", 41), a_pass("c", 1)) == [[0], [1, 2]]


def test_the_number_of_runs_ends_a_batch() -> None:
    scheduler = Scheduler(BUDGET, max_batch_runs=2)
    for number, run in enumerate(["a", "b", "a", "c"]):
        scheduler.add(number, a_pass(run))
    assert [number for number, _ in scheduler.next_training().members] == [0, 2, 1]
    assert [number for number, _ in scheduler.next_training().members] == [3]


def test_a_pass_beyond_the_budget_runs_alone() -> None:
    assert batches(a_pass("a", 500), a_pass("b", 1)) == [[0], [1]]


def test_runs_take_turns_when_a_run_has_more_than_its_share() -> None:
    """The greedy run has ten full batches queued; the other waits for one of them at most."""
    greedy = [a_pass("greedy", BUDGET) for _ in range(10)]
    order = batches(*greedy, a_pass("other", BUDGET), a_pass("other", BUDGET))
    assert order[:4] == [[0], [10], [1], [11]]


def test_a_run_that_comes_back_goes_to_the_end_of_the_line() -> None:
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    for number, run in enumerate("abc"):
        scheduler.add(number, a_pass(run, BUDGET))
    taken = []
    for number in range(3, 9):
        work = scheduler.next_training()
        assert isinstance(work, Passes)
        ((_, command),) = work.members
        taken.append(command.run_id)
        scheduler.add(number, a_pass(command.run_id, BUDGET))
    assert "".join(taken) == "abcabc"


@st.composite
def queues(draw: st.DrawFn) -> list[TrainingCommand]:
    kinds = st.sampled_from(["pass", "evaluation", "step"])
    entries = st.tuples(st.sampled_from("abc"), kinds, st.integers(1, 70))
    return [
        a_step(run) if kind == "step" else a_pass(run, tokens, forward_only=kind == "evaluation")
        for run, kind, tokens in draw(st.lists(entries, max_size=20))
    ]


@given(commands=queues())
def test_whatever_is_queued(commands: list[TrainingCommand]) -> None:
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    for number, command in enumerate(commands):
        scheduler.add(number, command)
    waits = dict.fromkeys("abc", 0)
    done: list[int] = []
    for members, numbers in drain(scheduler):
        waiting = {c.run_id for n, c in enumerate(commands) if n not in done}
        served = {command.run_id for command in members}
        for run in waits:
            waits[run] = 0 if run in served else waits[run] + (run in waiting)
        assert max(waits.values()) < 3, "a run waits for every other run once at most"
        done += numbers
        assert [commands[number] for number in numbers] == members
        if len(members) > 1:
            assert all(isinstance(command, ForwardBackward) for command in members)
            assert len({command.forward_only for command in members}) == 1
            assert sum(command.num_tokens for command in members) <= BUDGET
    assert sorted(done) == list(range(len(commands)))
    for run in "abc":
        own = [number for number in done if commands[number].run_id == run]
        assert own == sorted(own)


# --- the two sides ------------------------------------------------------------------------------------------


def test_a_side_with_all_the_work_has_all_the_time() -> None:
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    assert scheduler.side(training=True, sampling=False) == "training"
    assert scheduler.side(training=False, sampling=True) == "sampling"
    assert scheduler.side(training=False, sampling=False) is None


@pytest.mark.parametrize("cost", [{"training": 1.0, "sampling": 0.01}, {"training": 0.01, "sampling": 1.0}])
def test_equal_time_while_both_have_work(cost: dict[str, float]) -> None:
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    spent = {"training": 0.0, "sampling": 0.0}
    for _ in range(1000):
        side = scheduler.side(training=True, sampling=True)
        assert side is not None
        scheduler.charge(side, cost[side])
        spent[side] += cost[side]
        assert abs(spent["training"] - spent["sampling"]) <= max(cost.values()) + 1e-9


def test_time_alone_is_not_held_against_a_side() -> None:
    """Training that ran for an hour by itself shares equally from the moment samples arrive."""
    scheduler = Scheduler(BUDGET, max_batch_runs=64)
    for _ in range(10):
        assert scheduler.side(training=True, sampling=False) == "training"
        scheduler.charge("training", 360.0)
    turns = []
    for _ in range(6):
        side = scheduler.side(training=True, sampling=True)
        assert side is not None
        turns.append(side)
        scheduler.charge(side, 1.0)
    assert turns.count("training") == turns.count("sampling") == 3
