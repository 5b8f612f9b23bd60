"""Samples that are given up: at every stage their memory is free at once, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mint.engine.core import Cancel, PromptQuery, Sample
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.sampling_support import (
    TOKEN_BYTES,
    Sampling,
    Steps,
    assert_all_free,
    assert_same,
    make_prompt,
    pool_of,
)
from tests.engine.support import policy_pass, trained_run

SIZE = 4


@pytest.fixture
def small(qwen_dir: Path) -> EngineDriver:
    """Eight tokens of prompts in a step, memory for a hundred tokens, four places."""
    return make_driver(
        qwen_dir,
        kv_block_size=SIZE,
        kv_cache_bytes=25 * SIZE * TOKEN_BYTES,
        max_batch_tokens=8,
        max_prefill_tokens=8,
        max_decode_batch=4,
    )


def continuations(driver: EngineDriver, number: int) -> tuple[list[object], list[object]]:
    """Of a request: those that run and those that wait."""
    schedule = driver.engine._generator._schedule
    return tuple([c for c in some if c.request.number == number] for some in (schedule._running, schedule._waiting))


def is_waiting(driver: EngineDriver) -> bool:
    running, waiting = continuations(driver, 1)
    return not running and bool(waiting) and waiting[0].request.cached_tokens is None


def is_prefilling(driver: EngineDriver) -> bool:
    running, _ = continuations(driver, 1)
    return any(0 < c.computed < len(c.request.command.prompt) for c in running)


def is_decoding(driver: EngineDriver) -> bool:
    running, _ = continuations(driver, 1)
    return any(len(c.tokens) > 2 for c in running)


def is_forked(driver: EngineDriver) -> bool:
    running, waiting = continuations(driver, 1)
    return len(running) > 1 and bool(waiting)


def is_partly_finished(driver: EngineDriver) -> bool:
    running, waiting = continuations(driver, 1)
    return any(c.request.finished for c in [*running, *waiting])


def is_preempted(driver: EngineDriver) -> bool:
    _, waiting = continuations(driver, 1)
    return any(c.tokens for c in waiting)


STAGES = [is_waiting, is_prefilling, is_decoding, is_forked, is_partly_finished, is_preempted]


def blocks_of_others(driver: EngineDriver) -> int:
    running = driver.engine._generator._schedule._running
    return len({block for c in running if c.request.number != 1 for block in c.blocks})


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@pytest.mark.parametrize("run", ["a", "b"], ids=["shares a prompt", "shares nothing"])
def test_memory_is_free_at_once_and_others_go_on(
    sampling: Sampling, small: EngineDriver, stage: Callable[[EngineDriver], bool], run: str
) -> None:
    prompt = make_prompt(0, 18)
    others = {0: sampling.command("a", prompt[:11], max_tokens=50), 2: sampling.command("b", make_prompt(1, 6), 2)}
    others[3] = sampling.command("a", prompt, 2)
    steps = Steps(small)
    steps.submit(0, others[0])
    steps.step()
    query = PromptQuery(last=999)
    steps.submit(1, sampling.command(run, prompt, 9, max_tokens=22, query=query, stream=True))
    steps.submit(2, others[2])
    while not stage(small):
        assert 1 not in steps.answers, "the stage never came"
        steps.step()
    if stage is is_waiting:
        steps.submit(3, others[3])

    steps.submit(1, Cancel())

    told = len(steps.progress.get(1, []))
    assert continuations(small, 1) == ([], [])
    assert pool_of(small).num_free == 25 - blocks_of_others(small)
    if stage is not is_waiting:
        steps.submit(3, others[3])
    answers = steps.finish()
    assert answers.keys() == {0, 2, 3}
    assert len(steps.progress.get(1, [])) == told
    for number, command in others.items():
        assert_same(answers[number], sampling.driver.one(command))
    assert_all_free(small)


def test_who_waits_for_a_prompt_computes_it_when_the_first_is_cancelled(
    sampling: Sampling, small: EngineDriver
) -> None:
    prompt = make_prompt(2, 40)
    commands = [sampling.command("a", np.append(prompt, i).astype(np.int32), max_tokens=3) for i in range(3)]
    steps = Steps(small)
    for number, command in enumerate(commands):
        steps.submit(number, command)
    steps.step(2)
    steps.submit(0, Cancel())
    answers = steps.finish()
    assert answers.keys() == {1, 2}
    assert answers[1].cached_tokens == 16, "what the first had computed is not lost"
    for number in (1, 2):
        assert_same(answers[number], sampling.driver.one(commands[number]))
    assert_all_free(small)


def test_what_is_not_in_progress_cannot_be_cancelled(sampling: Sampling, small: EngineDriver) -> None:
    command = sampling.command("a", make_prompt(3, 5), 2)
    steps = Steps(small)
    steps.submit(7, Cancel())
    assert not small.engine.has_work
    steps.submit(8, command)
    steps.submit(9, Cancel())
    answer = steps.finish()[8]
    steps.submit(8, Cancel())
    steps.step()
    assert steps.answers == {8: answer}
    assert_same(answer, sampling.driver.one(command))


def test_a_number_is_free_again(sampling: Sampling, small: EngineDriver) -> None:
    """A request sent again under its number is another request."""
    first, second = (sampling.command("a", make_prompt(i, 9), 3) for i in range(2))
    steps = Steps(small)
    steps.submit(1, first)
    steps.step(3)
    steps.submit(1, Cancel())
    steps.submit(1, second)
    assert_same(steps.finish()[1], sampling.driver.one(second))


def test_training_is_not_cancelled(sampling: Sampling, small: EngineDriver) -> None:
    trained_run(small, "run", shape())
    steps = Steps(small)
    steps.submit(1, policy_pass("run", [8], "cross_entropy", np.random.default_rng(0)))
    steps.submit(1, Cancel())
    assert steps.finish().keys() == {1}


@pytest.mark.parametrize("count", [1, 30])
def test_all_can_be_cancelled(sampling: Sampling, small: EngineDriver, count: int) -> None:
    steps = Steps(small)
    for number in range(count):
        command: Sample = sampling.command("ab"[number % 2], make_prompt(number, 5 + number), 3, max_tokens=20)
        steps.submit(number, command)
    steps.step(12)
    for number in range(count):
        steps.submit(number, Cancel())
    assert not steps.answers
    assert_all_free(small)
