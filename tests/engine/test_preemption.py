"""More than fits: samples give their blocks back and are computed again; prompts are computed in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from mint.engine.core import Sampled
from mint.engine.sample_schedule import SampleSchedule
from tests.engine.conftest import EngineDriver, make_driver
from tests.engine.sampling_support import (
    TOKEN_BYTES,
    Sampling,
    Steps,
    assert_all_free,
    assert_all_same,
    assert_same,
    counting_tokens,
    make_prompt,
    noting_preemptions,
)

SIZE = 4


def small_driver(qwen_dir: Path, num_blocks: int, **settings: int) -> EngineDriver:
    return make_driver(qwen_dir, kv_block_size=SIZE, kv_cache_bytes=num_blocks * SIZE * TOKEN_BYTES, **settings)


def test_who_gives_blocks_back_goes_on_as_if_nothing_had_been(sampling: Sampling, qwen_dir: Path) -> None:
    driver = small_driver(qwen_dir, 16)
    preempted = noting_preemptions(driver)
    commands = [sampling.command(["a", "b", "base"][i % 3], make_prompt(i, 6 + i), 2, max_tokens=40) for i in range(5)]
    answers = driver.together(commands)
    assert len(preempted) > 5
    for ours, command in zip(answers, commands, strict=True):
        assert_same(ours, sampling.driver.one(command))
    assert_all_free(driver)


def test_what_is_remembered_is_not_computed_again(sampling: Sampling, qwen_dir: Path) -> None:
    """The younger gives its blocks back for the last one of the older, and has lost no more than that."""
    driver = small_driver(qwen_dir, 12)
    preempted = noting_preemptions(driver)
    old = sampling.command("a", make_prompt(0, 15), max_tokens=8)
    young = sampling.command("a", make_prompt(1, 20), max_tokens=20)
    with counting_tokens(driver) as counts:
        answers = driver.together([old, young])
    assert len(preempted) == 1
    assert 0 < sum(counts) - (15 + 7) - (20 + 19) <= SIZE
    for ours, command in zip(answers, (old, young), strict=True):
        assert_same(ours, sampling.driver.one(command))


def test_the_oldest_always_goes_on(sampling: Sampling, qwen_dir: Path) -> None:
    """In every step the first that came computes something, however many come behind it."""
    driver = small_driver(qwen_dir, 12, max_batch_tokens=8, max_prefill_tokens=4)
    schedule, steps = driver.engine._generator._schedule, Steps(driver)
    commands = {number: sampling.command("b", make_prompt(number, 18), 3, max_tokens=20) for number in range(8)}
    for number, command in commands.items():
        steps.submit(number, command)
    while driver.engine.has_work:
        oldest = schedule._running[0] if schedule._running else None
        before = progress_of(schedule)
        steps.step()
        assert oldest is None or oldest.is_ended or progress_of(schedule, oldest) > before
        assert schedule._running == [] or oldest is None or oldest.is_ended or schedule._running[0] is oldest
    assert_all_same(steps.answers, {number: sampling.driver.one(command) for number, command in commands.items()})
    assert_all_free(driver)


def progress_of(schedule: SampleSchedule, continuation: object = None) -> tuple[int, int]:
    """Tokens that are drawn, and computed, of the oldest or of this one."""
    oldest = continuation or (schedule._running[0] if schedule._running else None)
    return (0, 0) if oldest is None else (len(oldest.tokens), oldest.computed)


def test_the_longest_that_fits_gets_all_of_the_memory(sampling: Sampling, qwen_dir: Path) -> None:
    driver = small_driver(qwen_dir, 12)
    commands = [sampling.command("a", make_prompt(i, 20), max_tokens=28) for i in range(4)]
    for ours, command in zip(driver.together(commands), commands, strict=True):
        assert_same(ours, sampling.driver.one(command))
        assert len(ours.sequences[0].tokens) == 28
    assert_all_free(driver)


@pytest.mark.parametrize("places", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [7, 8], ids=["partly filled block", "full blocks"])
def test_more_samples_than_places(sampling: Sampling, qwen_dir: Path, places: int, length: int) -> None:
    """Those without a place begin later, from a prompt that is remembered, and in their order."""
    driver = small_driver(qwen_dir, 100, max_decode_batch=places)
    command = sampling.command("a", make_prompt(1, length), 17, max_tokens=5)
    with counting_tokens(driver) as counts:
        ours = driver.one(command)
    assert_same(ours, sampling.driver.one(command))
    assert max(counts[1:]) <= max(places, SIZE)
    assert_all_free(driver)


def test_more_samples_than_blocks(sampling: Sampling, qwen_dir: Path) -> None:
    """A fork needs a block for each sample, of which there are fewer than places."""
    driver = small_driver(qwen_dir, 8)
    commands = [sampling.command("a", make_prompt(1, 10), 9, max_tokens=6), sampling.command("b", make_prompt(2, 13))]
    for ours, command in zip(driver.together(commands), commands, strict=True):
        assert_same(ours, sampling.driver.one(command))
    assert_all_free(driver)


@pytest.mark.parametrize("length", range(1, 26))
def test_prompts_in_pieces(sampling: Sampling, qwen_dir: Path, chunked: EngineDriver, length: int) -> None:
    """Pieces of at most 12 tokens, and 8 beside what decodes; around the borders of blocks and pieces."""
    beside = sampling.command("b", make_prompt(99, 5), 2, max_tokens=12)
    command = sampling.command("a", make_prompt(length, length), 2, max_tokens=6)
    with counting_tokens(chunked) as counts:
        answers = chunked.together([beside, command])
    assert max(counts) <= 12
    for ours, asked in zip(answers, (beside, command), strict=True):
        assert_same(ours, sampling.driver.one(asked))
    assert_all_free(chunked)


@pytest.fixture(scope="module")
def chunked(qwen_dir: Path) -> EngineDriver:
    return small_driver(qwen_dir, 40, max_batch_tokens=12, max_prefill_tokens=8)


@pytest.mark.parametrize("settings", [{"max_batch_tokens": 3}, {"max_prefill_tokens": 2}, {"max_prefill_tokens": 0}])
def test_a_budget_below_a_block_computes_a_block(sampling: Sampling, qwen_dir: Path, settings: dict[str, int]) -> None:
    driver = small_driver(qwen_dir, 40, **settings)
    commands = [sampling.command("a", make_prompt(i, 9 + i), 2, max_tokens=5) for i in range(3)]
    for ours, command in zip(driver.together(commands), commands, strict=True):
        assert_same(ours, sampling.driver.one(command))


def test_decoding_goes_on_beside_a_long_prompt(sampling: Sampling, qwen_dir: Path) -> None:
    """It draws a token in every step in which a piece of the prompt is computed."""
    driver = small_driver(qwen_dir, 200, max_prefill_tokens=8)
    steps = Steps(driver)
    steps.submit(0, sampling.command("base", make_prompt(0, 5), max_tokens=60, stream=True))
    steps.step(2)
    steps.submit(1, sampling.command("a", make_prompt(1, 150), max_tokens=1))
    taken = 0
    while 1 not in steps.answers:
        steps.step()
        taken += 1
    assert taken >= 150 // 8
    assert len(steps.progress[0]) == 2 + taken
    answer = steps.finish()[0]
    assert isinstance(answer, Sampled)
    assert len(answer.sequences[0].tokens) == 60
