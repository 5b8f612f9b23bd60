"""What is told beside tokens: the likeliest ones, and progress while samples are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mint.engine.core import Sampled
from mint.errors import BadRequestError
from tests.engine.conftest import make_driver, shape
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
from tests.engine.support import export, trainable, trained_run
from tests.engine.test_draw import reference_distribution

pytestmark = pytest.mark.usefixtures("nothing_leaks")


# --- the likeliest tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 3}, {"temperature": 1.3, "top_k": 50, "top_p": 0.6}],
    ids=str,
)
def test_top_logprobs_are_of_what_was_drawn_from(sampling: Sampling, qwen_dir: Path, params: dict[str, float]) -> None:
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    prompt = make_prompt(1, 20)
    command = sampling.command("base", prompt, 2, top_logprobs=5, max_tokens=10, **params)
    for sequence in sampling.driver.one(command).sequences:
        whole = torch.from_numpy(np.concatenate([prompt, sequence.tokens]).astype(np.int64))
        with torch.no_grad():
            logits = base(whole[None]).logits[0, len(prompt) - 1 : -1]
        assert sequence.top.tokens.shape == sequence.top.logprobs.shape == (10, 5)
        for row, tokens, logprobs in zip(logits, sequence.top.tokens, sequence.top.logprobs, strict=True):
            if command.params.temperature == 0:
                expected = torch.log_softmax(row.double(), dim=0).numpy()
            else:
                expected = reference_distribution(row.numpy(), command.params)
            ranked = np.argsort(-expected, kind="stable")[:5]
            left = np.isfinite(expected[ranked])
            np.testing.assert_array_equal(tokens, np.where(left, ranked, -1))
            np.testing.assert_allclose(logprobs, expected[ranked], rtol=0, atol=SAME)


def test_a_drawn_token_among_the_likeliest_has_its_logprob(sampling: Sampling) -> None:
    command = sampling.command("a", make_prompt(2, 9), 3, top_logprobs=VOCAB, max_tokens=6)
    for sequence in sampling.driver.one(command).sequences:
        place = sequence.top.tokens == sequence.tokens[:, None]
        assert (place.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(sequence.top.logprobs[place], sequence.logprobs)


def test_some_ask_for_top_logprobs_and_others_do_not(sampling: Sampling) -> None:
    commands = [sampling.command("a", make_prompt(i, 9), 2, top_logprobs=count) for i, count in enumerate([0, 3, 0, 7])]
    expected = [sampling.driver.one(command) for command in commands]
    assert [answer.sequences[0].top is None for answer in expected] == [True, False, True, False]
    for ours, theirs in zip(sampling.driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)


# --- progress -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0, 2])
def test_progress_adds_up_to_the_answer(sampling: Sampling, top: int) -> None:
    """Every token once, of samples that stop at different times, in steps that others share."""
    natural = sampling.driver.one(sampling.command("a", make_prompt(3, 12), 4, max_tokens=30))
    stops = frozenset(int(sequence.tokens[5 + i]) for i, sequence in enumerate(natural.sequences))
    command = sampling.command(
        "a", make_prompt(3, 12), 4, max_tokens=30, stop_token_ids=stops, top_logprobs=top, stream=True
    )
    steps = Steps(sampling.driver)
    steps.submit(0, command)
    steps.submit(1, sampling.command("b", make_prompt(4, 5), 3, max_tokens=9, stream=True))
    steps.submit(2, sampling.command("b", make_prompt(4, 5), 3, max_tokens=9))
    answers = steps.finish()
    assert steps.progress.keys() == {0, 1}
    for number, progress in steps.progress.items():
        assert_adds_up(progress, answers[number])
    assert len({len(sequence.tokens) for sequence in answers[0].sequences}) > 1
    assert_same(answers[1], answers[2])
    if not top:
        assert_same(answers[0], sampling.driver.one(command))


def test_progress_comes_with_every_token(sampling: Sampling) -> None:
    steps = Steps(sampling.driver)
    steps.submit(0, sampling.command("a", make_prompt(5, 12), max_tokens=5, stream=True))
    for drawn in range(1, 6):
        steps.step()
        assert sum(len(message.drawn[0][0]) for message in steps.progress[0]) == drawn
    assert isinstance(steps.answers[0], Sampled)


def test_progress_under_preemption_tells_nothing_twice(sampling: Sampling, qwen_dir: Path) -> None:
    driver = make_driver(qwen_dir, kv_block_size=4, kv_cache_bytes=14 * 4 * TOKEN_BYTES)
    preempted = noting_preemptions(driver)
    steps = Steps(driver)
    commands = [
        sampling.command("a", make_prompt(i, 10), 3, max_tokens=30, stream=True, top_logprobs=2) for i in range(3)
    ]
    for number, command in enumerate(commands):
        steps.submit(number, command)
    answers = steps.finish()
    assert preempted
    for number, command in enumerate(commands):
        assert_adds_up(steps.progress[number], answers[number])
        assert_same(answers[number], sampling.driver.one(command))
    assert_all_free(driver)


def test_a_stream_that_fails_tells_nothing_of_what_made_it_fail(
    sampling: Sampling, qwen_dir: Path, tmp_path: Path
) -> None:
    driver = make_driver(qwen_dir)
    trained_run(driver, "diverged", shape())
    trainable(driver, "diverged").adapter.flat.fill_(float("nan"))
    command = sampling.command("a", make_prompt(0, 9), 2, stream=True)
    steps = Steps(driver)
    steps.submit(
        0,
        type(command)(
            export(driver, "diverged", tmp_path / "diverged"), command.prompt, 2, command.params, stream=True
        ),
    )
    steps.submit(1, command)
    answers = steps.finish()
    assert isinstance(answers[0], BadRequestError)
    assert steps.progress.keys() == {1}
    assert_same(answers[1], sampling.driver.one(command))
    assert_all_free(driver)
