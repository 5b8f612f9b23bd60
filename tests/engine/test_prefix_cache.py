"""What is computed once and found again: prompts, conversations, the common beginning of a group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mint.engine.core import PromptQuery, Sampled
from tests.engine.conftest import EngineDriver, make_driver
from tests.engine.sampling_support import (
    TOKEN_BYTES,
    Sampling,
    Steps,
    assert_all_free,
    assert_same,
    counting_tokens,
    make_prompt,
)

BLOCK = 16


@pytest.fixture
def driver(qwen_dir: Path) -> EngineDriver:
    """An engine that remembers nothing yet."""
    return make_driver(qwen_dir, kv_block_size=BLOCK)


def cached(answer: object) -> int:
    assert isinstance(answer, Sampled)
    return answer.cached_tokens


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0), (15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (70, 64)], ids=str
)
def test_a_prompt_is_found_again(sampling: Sampling, driver: EngineDriver, length: int, expected: int) -> None:
    """All full blocks, but for the last token, whose hidden state is needed."""
    command = sampling.command("a", make_prompt(1, length), 2, max_tokens=1)
    with counting_tokens(driver) as counts:
        first, second = driver.one(command), driver.one(command)
    assert (cached(first), cached(second)) == (0, expected)
    assert counts == [length, length - expected]
    assert_same(second, first)
    assert_same(first, sampling.driver.one(command))
    assert_all_free(driver)


def test_the_next_turn_pays_for_its_new_tokens(sampling: Sampling, driver: EngineDriver) -> None:
    """What was drawn is remembered too, up to the last token, which was never computed."""
    history = make_prompt(2, 20)
    for turn in range(4):
        command = sampling.command("a", history, max_tokens=30, seed=turn)
        with counting_tokens(driver) as counts:
            answer = driver.one(command)
        expected = (len(history) - 5 - 1) // BLOCK * BLOCK if turn else 0
        assert cached(answer) == expected
        assert counts[0] == len(history) - expected
        assert_same(answer, sampling.driver.one(command))
        history = np.concatenate([history, answer.sequences[0].tokens, make_prompt(turn, 5)])


def test_revisions_share_nothing(sampling: Sampling, driver: EngineDriver) -> None:
    prompt = make_prompt(3, 50)
    for run in ("base", "a", "b"):
        command = sampling.command(run, prompt)
        assert cached(driver.one(command)) == 0
        again = driver.one(command)
        assert cached(again) == 48
        assert_same(again, sampling.driver.one(command))


def test_a_group_computes_a_common_prompt_once(sampling: Sampling, driver: EngineDriver) -> None:
    """Requests that come at the same time: the others wait for the first, and each pays for its own end."""
    common = make_prompt(4, 4 * BLOCK)
    group = [sampling.command("a", np.append(common, make_prompt(i, 3)), max_tokens=1, seed=i) for i in range(6)]
    with counting_tokens(driver) as counts:
        answers = driver.together(group)
    assert counts == [67, 5 * 3]
    assert [cached(answer) for answer in answers] == [0] + [64] * 5
    for ours, command in zip(answers, group, strict=True):
        assert_same(ours, sampling.driver.one(command))


def test_who_shares_nothing_does_not_wait_for_the_group(sampling: Sampling, driver: EngineDriver) -> None:
    group = [sampling.command("a", make_prompt(4, 50), max_tokens=1) for _ in range(2)]
    with counting_tokens(driver) as counts:
        driver.together([*group, sampling.command("a", make_prompt(5, 10), max_tokens=1)])
    assert counts == [60, 2]


def test_samples_of_one_request_compute_its_prompt_once(sampling: Sampling, driver: EngineDriver) -> None:
    command = sampling.command("b", make_prompt(5, 40), 7, max_tokens=4)
    with counting_tokens(driver) as counts:
        answer = driver.one(command)
    assert counts == [40, 7, 7, 7]
    assert cached(answer) == 0
    assert_same(answer, sampling.driver.one(command))


def test_the_samples_of_another_request_are_found(sampling: Sampling, driver: EngineDriver) -> None:
    """Not only the first sample's tokens: those of each."""
    prompt = make_prompt(6, 10)
    answer = driver.one(sampling.command("a", prompt, 3, max_tokens=40))
    for sequence in answer.sequences:
        longer = np.concatenate([prompt, sequence.tokens])
        command = sampling.command("a", longer, max_tokens=3)
        again = driver.one(command)
        assert cached(again) == 48
        assert_same(again, sampling.driver.one(command))


@pytest.mark.parametrize(
    ("last", "expected"), [(1, 64), (5, 64), (6, 64), (7, 48), (22, 48), (23, 32), (70, 0), (999, 0)]
)
def test_a_query_takes_what_it_does_not_ask_about_from_memory(
    sampling: Sampling, driver: EngineDriver, last: int, expected: int
) -> None:
    command = sampling.command("a", make_prompt(7, 71), query=PromptQuery(last=last, top=3))
    driver.one(replace(command, query=PromptQuery()))
    answer = driver.one(command)
    assert cached(answer) == expected
    assert_same(answer, sampling.driver.one(command))
    whole = sampling.driver.one(replace(command, query=PromptQuery(last=999, top=3)))
    np.testing.assert_allclose(answer.prompt.logprobs[-last:], whole.prompt.logprobs[-last:], rtol=0, atol=1e-5)


def test_the_least_recently_used_prompt_is_forgotten(sampling: Sampling, qwen_dir: Path) -> None:
    """Memory for three prompts: of four, the one that was not asked for again is gone."""
    driver = make_driver(qwen_dir, kv_block_size=4, kv_cache_bytes=3 * 5 * 4 * TOKEN_BYTES)
    one, two, three, four = (sampling.command("a", make_prompt(i, 18), max_tokens=1) for i in range(4))
    for command in (one, two, three, one, four):
        driver.one(command)
    assert cached(driver.one(one)) == 16
    assert cached(driver.one(four)) == 16
    assert cached(driver.one(three)) == 16
    assert cached(driver.one(two)) < 16
    for command in (one, two, three, four):
        assert_same(driver.one(command), sampling.driver.one(command))
    assert_all_free(driver)


def test_a_block_in_use_is_not_forgotten(sampling: Sampling, qwen_dir: Path) -> None:
    """While one sample goes on, others come and need its memory."""
    driver = make_driver(qwen_dir, kv_block_size=4, kv_cache_bytes=24 * 4 * TOKEN_BYTES)
    steps = Steps(driver)
    long = sampling.command("b", make_prompt(0, 17), max_tokens=40)
    steps.submit(0, long)
    steps.step(5)
    others = [sampling.command("a", make_prompt(i, 15), max_tokens=4) for i in range(1, 12)]
    for number, command in enumerate(others, start=1):
        steps.submit(number, command)
        steps.step(2)
    answers = steps.finish()
    assert_same(answers[0], sampling.driver.one(long))
    for number, command in enumerate(others, start=1):
        assert_same(answers[number], sampling.driver.one(command))
    assert_all_free(driver)


def test_a_reloaded_revision_is_the_same_revision(
    sampling: Sampling, qwen_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded again while samples of it run: the two share blocks, and each sees its own."""
    monkeypatch.setattr("mint.engine.paged_attention.WORTH_SHARING", 1)
    size = max(sampling.driver.engine._trainer.run(run).adapter.flat.nbytes for run in "ab")
    driver = make_driver(qwen_dir, revision_cache_bytes=size + 1, kv_block_size=4)
    common = make_prompt(8, 8)
    ends = [make_prompt(i, 4) for i in range(2)]
    first = [sampling.command("a", np.concatenate([common, end, [7]]).astype(np.int32), max_tokens=12) for end in ends]
    second = [replace(command, params=replace(command.params, seed=9)) for command in first]
    steps = Steps(driver)
    for number, command in enumerate([*first, sampling.command("b", common), *second]):
        steps.submit(number, command)
        steps.step(2)
    assert len({id(c.request.adapter) for c in driver.engine._generator._schedule._running}) > 1
    answers = steps.finish()
    for number, command in zip((0, 1, 3, 4), [*first, *second], strict=True):
        assert_same(answers[number], sampling.driver.one(command))
