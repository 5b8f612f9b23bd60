"""An engine in this process, driven step by step, on a random model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mint.config import EngineConfig, ModelSource
from mint.engine.core import Command, Datum, Interpolate, LoraShape, Result, Snapshot
from mint.engine.engine import Answer
from mint.engine.worker import build_engine
from mint.errors import MintError

if TYPE_CHECKING:
    from tests.engine.sampling_support import Sampling


class EngineDriver:
    """Runs commands on an engine and hands back their results."""

    def __init__(self, source: ModelSource, config: EngineConfig) -> None:
        self._late: SimpleQueue[Answer] = SimpleQueue()
        self.engine, self.info = build_engine(source, config, self._late.put)
        self._number = 0

    def together(self, commands: Iterable[Command]) -> list[Result | MintError]:
        """Submit all, then step until all have answered."""
        answers: dict[int, Result | MintError] = {}
        numbers = []
        commands = list(commands)
        for command in commands:
            self._number += 1
            numbers.append(self._number)
            answers.update(self.engine.submit(self._number, command))
        while self.engine.has_work:
            answers.update(self.engine.step())
        for number, command in zip(numbers, commands, strict=True):
            if isinstance(command, Snapshot | Interpolate) and number not in answers:
                answers.update([self._late.get(timeout=60)])
        return [answers[number] for number in numbers]

    def one(self, command: Command) -> Result:
        """Run a command that must succeed."""
        (answer,) = self.together([command])
        if isinstance(answer, MintError):
            raise answer
        return answer


def make_driver(folder: Path, **settings: Any) -> EngineDriver:
    return EngineDriver(ModelSource("random", str(folder)), EngineConfig(**settings))


@pytest.fixture
def driver(qwen_dir: Path) -> EngineDriver:
    return make_driver(qwen_dir)


@pytest.fixture
def two_runs(qwen_dir: Path) -> EngineDriver:
    """A driver with the runs "run" and "other", trained, and without gradients."""
    from tests.engine.support import trained_run  # it imports this module

    driver = make_driver(qwen_dir)
    trained_run(driver, "run", shape())
    trained_run(driver, "other", shape(4), seed=1)
    return driver


def make_datum(rng: np.random.Generator, length: int, *, policy: bool = False) -> Datum:
    inputs = {
        "target_tokens": rng.integers(0, 2048, length),
        "weights": rng.normal(size=length).astype(np.float32),
    }
    if policy:
        inputs["logprobs"] = rng.normal(-7, 0.3, size=length).astype(np.float32)
        inputs["advantages"] = rng.normal(size=length).astype(np.float32)
        inputs["sequence_ratio_mask"] = (np.arange(length) >= length // 3).astype(np.float32)
    return Datum(rng.integers(0, 2048, length).astype(np.int32), inputs)


def shape(rank: int = 8, **flags: bool) -> LoraShape:
    return LoraShape(rank=rank, seed=rank, **flags)


@pytest.fixture(scope="session")
def sampling(qwen_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Sampling:
    from tests.engine.sampling_support import Sampling

    return Sampling(qwen_dir, tmp_path_factory.mktemp("revisions"))


@pytest.fixture
def nothing_leaks(sampling: Sampling) -> Iterator[None]:
    """Whatever a test does, the shared engine ends with all its blocks free."""
    from tests.engine.sampling_support import assert_all_free

    yield
    assert_all_free(sampling.driver)
