"""Training and sampling on one engine, by a clock that the tests set: whatever a step takes, each gets its half."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mint.engine.core import Sampled
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.sampling_support import Sampling, Steps, make_prompt
from tests.engine.support import policy_pass, trained_run

Costs = dict[str, Callable[[], float]]


class Clock:
    """Time that only steps take; `spent` has that of each side."""

    def __init__(self, engine: object, costs: Costs) -> None:
        self.now = 0.0
        self.spent = dict.fromkeys(costs, 0.0)
        self._costs = costs
        self._bill(engine, "_train", "training")
        self._bill(engine._generator, "step", "sampling")

    def __call__(self) -> float:
        return self.now

    def _bill(self, owner: object, name: str, side: str) -> None:
        original = getattr(owner, name)

        def billed() -> Iterator[object]:
            yield from original()
            cost = self._costs[side]()
            self.now += cost
            self.spent[side] += cost

        setattr(owner, name, billed)

    @property
    def share_of_training(self) -> float:
        return self.spent["training"] / sum(self.spent.values())


@pytest.fixture
def driver(qwen_dir: Path) -> EngineDriver:
    driver = make_driver(qwen_dir, max_batch_tokens=16)
    trained_run(driver, "run", shape(2))
    return driver


def start(driver: EngineDriver, costs: Costs, monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, Steps]:
    clock = Clock(driver.engine, costs)
    monkeypatch.setattr("mint.engine.engine.perf_counter", clock)
    return clock, Steps(driver)


def keep_busy(steps: Steps, sampling: Sampling, number: int, *, training: bool = True, samples: bool = True) -> None:
    """A pass of some micro-batches and a sample of some tokens."""
    if training:
        steps.submit(2 * number, policy_pass("run", [9, 9, 9], "cross_entropy", np.random.default_rng(0)))
    if samples:
        steps.submit(2 * number + 1, sampling.command("a", make_prompt(number, 5), max_tokens=30))


def constant(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def random(seed: int, low: float, high: float) -> Callable[[], float]:
    rng = np.random.default_rng(seed)
    return lambda: float(np.exp(rng.uniform(np.log(low), np.log(high))))


COSTS = {
    "equal": (constant(0.02), constant(0.02)),
    "long passes": (constant(0.5), constant(0.05)),
    "long samples": (constant(0.02), constant(0.3)),
    "any": (random(1, 0.001, 1.0), random(2, 0.001, 1.0)),
}


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_each_side_gets_its_half(
    sampling: Sampling,
    driver: EngineDriver,
    costs: tuple[Callable[[], float], Callable[[], float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, steps = start(driver, dict(zip(("training", "sampling"), costs, strict=True)), monkeypatch)
    longest = 0.0
    for number in range(120):
        keep_busy(
            steps,
            sampling,
            number,
            training=not driver.engine._scheduler.has_training,
            samples=len(driver.engine._generator._schedule._running) < 2,
        )
        before = clock.now
        steps.step()
        longest = max(longest, clock.now - before)
        difference = abs(clock.spent["training"] - clock.spent["sampling"])
        assert difference <= longest + 1e-9, "neither is ahead by more than a step"
    assert min(clock.spent.values()) > 3 * longest, "long enough to tell"
    assert 0.4 <= clock.share_of_training <= 0.6
    assert not any(isinstance(answer, Exception) for answer in steps.finish().values())


def test_short_pauses_do_not_cost_a_side_its_share(
    sampling: Sampling, driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample after the other, each sent when the last is answered, beside training that never ends."""
    clock, steps = start(driver, {"training": constant(2.0), "sampling": constant(0.05)}, monkeypatch)
    steps.submit(0, policy_pass("run", [16] * 40, "cross_entropy", np.random.default_rng(0)))
    waited = 0.0
    for number in range(1, 11):
        steps.submit(number, sampling.command("a", make_prompt(0, 5), max_tokens=10))
        sent = clock.now
        while number not in steps.answers:
            steps.step()
        waited += clock.now - sent
        steps.step()  # what came while nobody sampled
    assert 0.4 <= clock.spent["sampling"] / waited <= 0.6


def test_a_side_that_comes_back_is_not_paid_for_its_absence(
    sampling: Sampling, driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After minutes of nothing but training, samples get half of the time, not all of it."""
    clock, steps = start(driver, {"training": constant(10.0), "sampling": constant(1.0)}, monkeypatch)
    for number in range(10):
        keep_busy(steps, sampling, number, samples=False)
    steps.step(12)
    assert clock.spent == {"training": 120.0, "sampling": 0.0}
    keep_busy(steps, sampling, 11, training=False)
    steps.step(22)
    assert clock.spent == {"training": 140.0, "sampling": 20.0}


def test_a_sample_waits_for_a_micro_batch_and_not_for_a_pass(
    sampling: Sampling, driver: EngineDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of a request that arrives in the midst of a long pass."""
    clock, steps = start(driver, {"training": constant(1.0), "sampling": constant(0.1)}, monkeypatch)
    steps.submit(0, policy_pass("run", [16] * 20, "cross_entropy", np.random.default_rng(0)))
    steps.step(3)
    steps.submit(1, sampling.command("a", make_prompt(0, 5), max_tokens=5))
    arrived = clock.now
    while 1 not in steps.answers:
        steps.step()
    assert isinstance(steps.answers[1], Sampled)
    assert 0 not in steps.answers
    assert clock.now - arrived == pytest.approx(1.0 + 5 * 0.1)
