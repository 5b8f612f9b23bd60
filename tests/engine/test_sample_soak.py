"""Mixed requests at random times in little memory, beside training: every answer is what the request gets alone."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mint.config import EngineConfig
from mint.engine.core import Cancel, OptimStep, PromptQuery, Revision, Sample, Sampled, SamplingParams
from mint.engine.generator import Generator
from mint.errors import MintError
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.sampling_support import (
    SAME,
    TOKEN_BYTES,
    VOCAB,
    Sampling,
    Steps,
    assert_adds_up,
    assert_all_free,
    assert_same,
    make_prompt,
    noting_preemptions,
)
from tests.engine.support import LARGE_STEPS, export, policy_pass, trained_run

SIZE = 4

AT_AN_EDGE = 1e-3
"""Of log-probabilities under top_p: rounding decides whether the unlikely token at its very edge counts."""

RANKS = {"c": shape(1, train_attn=False), "d": shape(4, train_mlp=False), "e": shape(4), "f": shape(33)}


@pytest.fixture(scope="module")
def revisions(sampling: Sampling, tmp_path_factory: pytest.TempPathFactory) -> list[Revision | None]:
    """The base model, and adapters of several ranks and places, two of one shape among them."""
    folder = tmp_path_factory.mktemp("soak")
    for seed, (run, lora) in enumerate(RANKS.items(), start=10):
        trained_run(sampling.driver, run, lora, seed)
    return [*sampling.revisions.values(), *(export(sampling.driver, run, folder / run) for run in RANKS)]


class Requests:
    """Random requests, many of which begin like others."""

    def __init__(self, seed: int, revisions: list[Revision | None]) -> None:
        self._rng = np.random.default_rng(seed)
        self._revisions = revisions
        self._beginnings = [make_prompt(1000 + i, 40) for i in range(4)]

    def request(self) -> Sample:
        rng = self._rng
        prompt = self._prompt()
        revision = self._revisions[rng.integers(len(self._revisions))]
        query = self._query(len(prompt)) if rng.random() < 0.4 else PromptQuery()
        top = int(rng.choice([0, 0, 0, 3]))
        return Sample(
            revision, prompt, int(rng.choice([1, 1, 2, 3, 6])), self._params(), query, top, rng.random() < 0.5
        )

    def _prompt(self) -> np.ndarray:
        """A beginning that others have too, and an end of its own."""
        rng = self._rng
        shared = self._beginnings[rng.integers(4)][: rng.integers(0, 41)]
        return np.concatenate([shared, rng.integers(0, VOCAB, rng.integers(1, 12))]).astype(np.int32)

    def _params(self) -> SamplingParams:
        rng = self._rng
        stops = rng.integers(0, VOCAB, 40).tolist() if rng.random() < 0.3 else []
        return SamplingParams(
            max_tokens=int(rng.integers(1, 20)),
            seed=int(rng.integers(2**40)),
            temperature=float(rng.choice([0.0, 0.8, 1.0, 1.0, 1.0, 1.5])),
            top_k=int(rng.choice([-1, -1, -1, 1, 30])),
            top_p=float(rng.choice([1.0, 1.0, 1.0, 0.9])),
            stop_token_ids=frozenset(stops),
            stop_bytes=(b"e", b"the ") if rng.random() < 0.2 else (),
        )

    def _query(self, length: int) -> PromptQuery:
        rng = self._rng
        targets = rng.integers(-1, VOCAB, (length - 1, 2)) if rng.random() < 0.3 else None
        return PromptQuery(
            int(rng.integers(1, length + 2)), int(rng.choice([0, 2])), targets, int(rng.choice([0, 0, 2]))
        )


class Soak:
    """An engine with memory for a few requests, under everything at once."""

    def __init__(self, driver: EngineDriver, seed: int) -> None:
        self.steps = Steps(driver)
        self.commands: dict[int, Sample] = {}
        self._rng = np.random.default_rng(seed)
        self._trained: set[int] = set()
        self.cancelled: set[int] = set()
        self.preempted = noting_preemptions(driver)

    def run(self, requests: Requests, total: int) -> None:
        """Until `total` requests have come and all are answered or cancelled."""
        while len(self.commands) < total or self.steps.engine.has_work:
            if len(self.commands) < total and self._rng.random() < 0.5:
                for _ in range(self._rng.integers(1, 4)):
                    number = len(self.commands)
                    self.commands[number] = requests.request()
                    self.steps.submit(number, self.commands[number])
            if self._rng.random() < 0.05:
                self._cancel()
            if self._rng.random() < 0.1 and len(self.commands) < total:
                self._train()
            self.steps.step()
        assert self.steps.answers.keys() == (self.commands.keys() - self.cancelled) | self._trained
        for number in self._trained:
            answer = self.steps.answers.pop(number)
            assert not isinstance(answer, MintError), answer

    def _cancel(self) -> None:
        """One of those in progress, or of those that are not."""
        number = int(self._rng.integers(len(self.commands) + 1))
        if number in self.commands and number not in self.steps.answers:
            self.cancelled.add(number)
        self.steps.submit(number, Cancel())

    def _train(self) -> None:
        number = 10**9 + len(self._trained)
        self._trained.add(number)
        run = str(self._rng.choice(["x", "y"]))
        lengths = [int(length) for length in self._rng.integers(1, 20, 2)]
        passed = policy_pass(run, lengths, "importance_sampling", self._rng)
        self.steps.submit(number, passed if self._rng.random() < 0.7 else OptimStep(run, LARGE_STEPS))


def alone(driver: EngineDriver, command: Sample) -> object:
    """On an engine that remembers nothing."""
    before = driver.engine._generator
    driver.engine._generator = Generator(
        before._model, EngineConfig(kv_cache_bytes=1 << 20), before._token_bytes, before._constraints, before._images
    )
    return driver.one(command)


def soak(qwen_dir: Path, revisions: list[Revision | None], seed: int, number: int) -> None:
    driver = make_driver(
        qwen_dir,
        kv_block_size=SIZE,
        kv_cache_bytes=45 * SIZE * TOKEN_BYTES,
        max_batch_tokens=24,
        max_prefill_tokens=16,
        max_decode_batch=16,
        revision_cache_bytes=200_000,
    )
    for run in "xy":
        trained_run(driver, run, shape(8))
    soak = Soak(driver, seed)
    soak.run(Requests(seed, revisions), number)
    assert_all_free(driver)
    assert min(len(soak.preempted), len(soak.cancelled)) > number / 50, "hardly a soak"
    assert any(isinstance(answer, Sampled) and answer.cached_tokens for answer in soak.steps.answers.values())
    reference = make_driver(qwen_dir)
    for key, answer in soak.steps.answers.items():
        command = soak.commands[key]
        assert_same(answer, alone(reference, command), SAME if command.params.top_p == 1 else AT_AN_EDGE)
        if command.stream:
            assert_adds_up(soak.steps.progress[key], answer)


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes as long, so that a soak is the same every time."""
    monkeypatch.setattr("mint.engine.engine.perf_counter", count().__next__)


@pytest.fixture(params=[16])
def worth_sharing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("mint.engine.paged_attention.WORTH_SHARING", request.param)
    return request.param


def test_every_answer_is_what_the_request_gets_alone(
    qwen_dir: Path, revisions: list[Revision | None], worth_sharing: int
) -> None:
    soak(qwen_dir, revisions, seed=0, number=200)


@pytest.mark.slow
@pytest.mark.parametrize("worth_sharing", [16, 512], indirect=True)
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_requests(qwen_dir: Path, revisions: list[Revision | None], seed: int, worth_sharing: int) -> None:
    soak(qwen_dir, revisions, seed, number=500)
