"""Samples in little memory, in memory of any content, and what is left of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mint.engine.core import PromptQuery, Sampled
from mint.errors import BadRequestError
from tests.engine.conftest import make_driver, shape
from tests.engine.sampling_support import (
    TOKEN_BYTES,
    Sampling,
    assert_all_free,
    assert_same,
    counting_tokens,
    make_prompt,
)
from tests.engine.support import export, trainable, trained_run

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def test_more_samples_than_the_cache_holds(sampling: Sampling, qwen_dir: Path) -> None:
    """12 blocks of 4 tokens; each request wants more for itself than is there for all its samples."""
    small = make_driver(qwen_dir, kv_cache_bytes=12 * 4 * TOKEN_BYTES, kv_block_size=4)
    assert small.engine._generator._cache.num_blocks == 12
    commands = [
        replace(sampling.command("a", make_prompt(30, 10), 9, max_tokens=9), query=PromptQuery(last=999)),
        sampling.command("base", make_prompt(31, 16), 5, max_tokens=32),
        sampling.command("b", make_prompt(32, 1), 7, max_tokens=1),
        sampling.command("base", make_prompt(33, 47), 2, max_tokens=1),
    ]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(small.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(small)


def test_few_decode_places_and_small_prefills(sampling: Sampling, qwen_dir: Path) -> None:
    narrow = make_driver(qwen_dir, max_decode_batch=3, max_batch_tokens=16)
    commands = [sampling.command("a", make_prompt(i, 5 + i), 4, max_tokens=3 + i) for i in range(6)]
    expected = sampling.driver.together(commands)
    with counting_tokens(narrow) as counts:
        answers = narrow.together(commands)
    # samples that decode are not counted as tokens of prompts
    assert max(counts) <= 16 + 3
    for ours, theirs in zip(answers, expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(narrow)


@pytest.mark.parametrize("max_tokens", [48 - 10 + 1, 10_000])
def test_a_sample_that_can_never_fit_is_refused_at_once(sampling: Sampling, qwen_dir: Path, max_tokens: int) -> None:
    small = make_driver(qwen_dir, kv_cache_bytes=12 * 4 * TOKEN_BYTES, kv_block_size=4)
    fits = sampling.command("base", make_prompt(0, 10), max_tokens=38)
    refused, served = small.together([sampling.command("base", make_prompt(0, 10), max_tokens=max_tokens), fits])
    assert isinstance(refused, BadRequestError)
    assert "48" in str(refused)
    assert len(served.sequences[0].tokens) == 38
    assert_all_free(small)


@pytest.mark.parametrize("change", [{"num_samples": 0}, {"prompt": make_prompt(0, 0)}, {"max_tokens": 0}])
def test_nothing_to_sample_is_refused(sampling: Sampling, change: dict[str, object]) -> None:
    command = sampling.command("base", make_prompt(0, 32))
    if "max_tokens" in change:
        broken = replace(command, params=replace(command.params, **change))
    else:
        broken = replace(command, **change)
    refused, served = sampling.driver.together([broken, command])
    assert isinstance(refused, BadRequestError)
    assert isinstance(served, Sampled)


def test_what_lies_in_unused_blocks_does_not_matter(sampling: Sampling, qwen_dir: Path) -> None:
    """Memory is not cleared when the cache is made: it may hold anything, and 0 × NaN is NaN."""
    driver = make_driver(qwen_dir, kv_cache_bytes=400 * TOKEN_BYTES)
    driver.engine._generator._cache._memory.fill_(float("nan"))
    assert driver.engine._generator._schedule.pool.take(1) == [0]  # stays as it is, whoever reads it
    commands = [sampling.command("a", make_prompt(i, 20 + 30 * i), 2, max_tokens=40) for i in range(3)]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)


def test_a_diverged_adapter_fails_alone_and_leaves_nothing_behind(
    sampling: Sampling, qwen_dir: Path, tmp_path: Path
) -> None:
    driver = make_driver(qwen_dir, kv_cache_bytes=24 * 4 * TOKEN_BYTES, kv_block_size=4)
    trained_run(driver, "diverged", shape())
    trainable(driver, "diverged").adapter.flat.fill_(float("nan"))
    diverged = export(driver, "diverged", tmp_path / "diverged")
    healthy = [sampling.command("a", make_prompt(i, 9), 2, max_tokens=10) for i in range(3)]
    broken = replace(healthy[0], revision=diverged, num_samples=20)  # more than are admitted at once
    expected = sampling.driver.together(healthy)

    commands = [healthy[0], broken, *healthy[1:]]
    for number, command in enumerate(commands):
        assert not list(driver.engine.submit(number, command))
    answers = []
    while driver.engine.has_work:
        answers += driver.engine.step()

    assert sorted(number for number, _ in answers) == [0, 1, 2, 3], "everyone is answered once"
    first, refused, *others = (answer for _, answer in sorted(answers, key=lambda pair: pair[0]))
    assert isinstance(refused, BadRequestError)
    assert "diverged" in str(refused)
    for ours, theirs in zip([first, *others], expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(driver)
    for ours, theirs in zip(driver.together(healthy), expected, strict=True):
        assert_same(ours, theirs)


def test_revisions_that_do_not_fit_in_memory_are_read_again(sampling: Sampling, qwen_dir: Path, tmp_path: Path) -> None:
    size = max(sampling.driver.engine._trainer.run(run).adapter.flat.nbytes for run in "ab")
    driver = make_driver(qwen_dir, revision_cache_bytes=size + 1)
    commands = [sampling.command(run, make_prompt(1, 15), 2) for run in ("a", "b", "a", "base", "b")]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert len(driver.engine._revisions._loaded) == 1
