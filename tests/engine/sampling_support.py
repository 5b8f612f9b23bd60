"""What several tests of samples need: trained revisions and their driver, prompts, comparison of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from mint.engine.blocks import BlockPool
from mint.engine.core import (
    Command,
    CreateRun,
    ForwardBackward,
    Passed,
    Progress,
    PromptQuery,
    Result,
    Revision,
    Sample,
    Sampled,
    SamplingParams,
    TopLogprobs,
)
from mint.errors import MintError
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import export, next_token_datum, trained_run

BOUND = 1e-5
"""Of log-probabilities, absolute: sampler and trainer run the same modules on batches of other shapes."""

SAME = 2e-5
"""Of the same sample in two batches; a temperature of 0.5 doubles what rounding does to the logits."""

VOCAB = 2048
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
"""Keys and values of one token: 2 layers, 2 heads of 16 float32."""

ADAPTERS = {"a": shape(4), "b": shape(16, train_unembed=False)}


class Sampling:
    """A driver with two trained runs and their revisions."""

    def __init__(self, qwen_dir: Path, folder: Path) -> None:
        self.driver = make_driver(qwen_dir)
        self.revisions: dict[str, Revision | None] = {"base": None}
        self.driver.one(CreateRun("base", shape()))  # B is zero: it computes what the base model does
        for seed, (run, lora) in enumerate(ADAPTERS.items()):
            trained_run(self.driver, run, lora, seed)
            self.revisions[run] = export(self.driver, run, folder / run)

    def command(
        self,
        run: str,
        prompt: np.ndarray,
        num_samples: int = 1,
        query: PromptQuery | None = None,
        top_logprobs: int = 0,
        stream: bool = False,
        **params: object,
    ) -> Sample:
        drawing = SamplingParams(**{"max_tokens": 8, "seed": 3, **params})
        return Sample(self.revisions[run], prompt, num_samples, drawing, query or PromptQuery(), top_logprobs, stream)

    def trainer_logprobs(self, run: str, tokens: np.ndarray) -> np.ndarray:
        """Of tokens[1:], by a forward-only pass of the run."""
        command = ForwardBackward(run, (next_token_datum(tokens),), "cross_entropy", forward_only=True)
        result = self.driver.one(command)
        assert isinstance(result, Passed)
        return result.logprobs[0]


class Steps:
    """Commands submitted by number while the engine takes steps; keeps what comes of each."""

    def __init__(self, driver: EngineDriver) -> None:
        self.engine = driver.engine
        self.answers: dict[int, Result | MintError] = {}
        self.progress: dict[int, list[Progress]] = {}

    def submit(self, number: int, command: Command) -> None:
        self._note(self.engine.submit(number, command))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._note(self.engine.step())

    def finish(self) -> dict[int, Result | MintError]:
        """Step until nothing is left to do."""
        while self.engine.has_work:
            self.step()
        return self.answers

    def _note(self, answers: Any) -> None:
        for number, answer in answers:
            assert number not in self.answers, "an answer is the last that is heard"
            if isinstance(answer, Progress):
                self.progress.setdefault(number, []).append(answer)
            else:
                self.answers[number] = answer


def pool_of(driver: EngineDriver) -> BlockPool:
    return driver.engine._generator._schedule.pool


def assert_all_free(driver: EngineDriver) -> None:
    pool = pool_of(driver)
    assert not driver.engine.has_work
    assert pool.num_free == pool.num_blocks
    assert sorted([*pool._empty, *pool._unheld]) == list(range(pool.num_blocks))
    assert not any(pool._holders)


@contextmanager
def counting_tokens(driver: EngineDriver) -> Iterator[list[int]]:
    """How many tokens the model computes in each step of generation in the body."""
    model, counts = driver.engine._generator._model, []
    original = model.hidden_states

    def counted(tokens: torch.Tensor, *args: Any) -> torch.Tensor:
        counts.append(len(tokens))
        return original(tokens, *args)

    model.hidden_states = counted
    try:
        yield counts
    finally:
        del model.hidden_states


def noting_preemptions(driver: EngineDriver) -> list[int]:
    """The numbers of requests of which a sample had to give its blocks back, from now on."""
    schedule, numbers = driver.engine._generator._schedule, []
    original = schedule._make_room

    def watched(*args: Any) -> bool:
        before = list(schedule._running)
        made = original(*args)
        numbers.extend(c.request.number for c in before if c not in schedule._running)
        return made

    schedule._make_room = watched
    return numbers


def make_prompt(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def generated(folder: Path, prompt: np.ndarray, max_tokens: int) -> np.ndarray:
    """What transformers' greedy generation makes of a prompt."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    mask = torch.ones_like(ids)
    result = base.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0
    )
    return result[0, len(prompt) :].numpy()


def assert_same(ours: object, expected: object, bound: float = SAME) -> None:
    assert isinstance(ours, Sampled), ours
    assert isinstance(expected, Sampled), expected
    for a, b in zip(ours.sequences, expected.sequences, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=bound)
        assert a.stop_reason == b.stop_reason
        assert_same_top(a.top, b.top, bound)
    assert_same_array(ours.prompt.logprobs, expected.prompt.logprobs, bound)
    assert_same_array(ours.prompt.targets, expected.prompt.targets, bound)
    assert_same_top(ours.prompt.top, expected.prompt.top, bound)
    assert_same_top(ours.prompt.alternatives, expected.prompt.alternatives, bound)


def assert_same_array(ours: np.ndarray | None, expected: np.ndarray | None, bound: float) -> None:
    assert (ours is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(ours, expected, rtol=0, atol=bound)


def assert_same_top(ours: TopLogprobs | None, expected: TopLogprobs | None, bound: float) -> None:
    assert (ours is None) == (expected is None)
    if ours is not None and expected is not None:
        np.testing.assert_array_equal(ours.tokens, expected.tokens)
        np.testing.assert_allclose(ours.logprobs, expected.logprobs, rtol=0, atol=bound)


def assert_all_same(ours: Mapping[int, object], expected: Mapping[int, object], bound: float = SAME) -> None:
    assert ours.keys() == expected.keys()
    for number, answer in ours.items():
        assert_same(answer, expected[number], bound)


def assert_adds_up(progress: Sequence[Progress], answer: object) -> None:
    """What was told while samples were drawn is the answer, in every bit."""
    assert isinstance(answer, Sampled), answer
    for index, sequence in enumerate(answer.sequences):
        tokens, logprobs, tops = zip(*(told.drawn[index] for told in progress if index in told.drawn), strict=True)
        np.testing.assert_array_equal(np.concatenate(tokens), sequence.tokens)
        np.testing.assert_array_equal(np.concatenate(logprobs), sequence.logprobs)
        assert {top is None for top in tops} == {sequence.top is None}
        if sequence.top is not None:
            np.testing.assert_array_equal(np.concatenate([top.tokens for top in tops]), sequence.top.tokens)
            np.testing.assert_array_equal(np.concatenate([top.logprobs for top in tops]), sequence.top.logprobs)


def assert_drawn_from(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's χ² stays below what chance exceeds once in a thousand (Wilson & Hilferty's approximation)."""
    expected = probabilities * counts.sum()
    freedom = max(1, len(counts) - 1)
    critical = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert ((counts - expected) ** 2 / expected).sum() < critical
