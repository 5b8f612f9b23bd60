"""Samples of models with windows and with experts, in pieces, from memory and after preemption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mint.engine.core import Sample, Sampled, SamplingParams
from mint.tiny import model_path
from tests.engine.conftest import make_driver
from tests.engine.sampling_support import assert_all_free, assert_same, generated, noting_preemptions
from tests.engine.test_families import FAMILIES

SIZE = 4
TOKEN_BYTES = 3 * 2 * 2 * 12 * 4
"""Keys and values of one token: 3 layers, 2 heads of 12 float32."""

MAX_TOKENS = 24


@pytest.fixture(
    scope="module", params=["gemma3, narrow windows", "mistral, narrow windows", "qwen3-moe", "mixtral", "phi3"]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, config = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    kind(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)
    return folder


def greedy(prompt: np.ndarray, num_samples: int = 1, max_tokens: int = MAX_TOKENS) -> Sample:
    return Sample(None, prompt, num_samples, SamplingParams(max_tokens, seed=0, temperature=0.0))


def prompts() -> list[np.ndarray]:
    """Shorter and longer than the windows, some that begin alike; the last continues the one before."""
    rng = np.random.default_rng(0)
    common = rng.integers(3, 2048, 21)
    ends = [rng.integers(3, 2048, n) for n in (1, 5, 9)]
    own = [rng.integers(3, 2048, n) for n in (2, 9, 12, 30)]
    return [array.astype(np.int32) for array in [*own, *(np.concatenate([common, end]) for end in ends)]]


@pytest.mark.parametrize("worth_sharing", [1, 512])
def test_greedy_samples_are_what_transformers_generates(
    folder: Path, worth_sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All together in memory for a few, in pieces of 8 tokens; then again, from what is remembered."""
    monkeypatch.setattr("mint.engine.paged_attention.WORTH_SHARING", worth_sharing)
    driver = make_driver(
        folder, kv_block_size=SIZE, kv_cache_bytes=36 * SIZE * TOKEN_BYTES, max_batch_tokens=8, max_prefill_tokens=8
    )
    commands = [greedy(prompt, num_samples=2) for prompt in prompts()]
    answers = [*driver.together(commands), *driver.together(commands[-3:])]
    assert any(answer.cached_tokens for answer in answers[-3:])
    expected = [generated(folder, command.prompt, MAX_TOKENS) for command in commands]
    for answer, tokens in zip(answers, [*expected, *expected[-3:]], strict=True):
        assert isinstance(answer, Sampled)
        for sequence in answer.sequences:
            np.testing.assert_array_equal(sequence.tokens, tokens)
    assert_all_free(driver)


def test_memory_of_any_size_gives_the_same_samples(folder: Path) -> None:
    """Log-probabilities too, of drawn samples with room for all and with room for hardly one."""
    commands = [
        Sample(None, prompt, 2, SamplingParams(MAX_TOKENS, seed=number)) for number, prompt in enumerate(prompts())
    ]
    large = make_driver(folder)
    small = make_driver(folder, kv_block_size=SIZE, kv_cache_bytes=15 * SIZE * TOKEN_BYTES, max_batch_tokens=12)
    preempted = noting_preemptions(small)
    expected = [large.one(command) for command in commands]
    for ours, theirs in zip(small.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert preempted
    for ours, theirs in zip(large.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(small)
    assert_all_free(large)
