"""Grouped products, which CUDA computes at once, give what the products one by one give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mint.engine.core import Sample, SamplingParams
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import assert_same_gradients, assert_same_pass, export, gradients, policy_pass, trained_run
from tests.engine.test_families import BOUND, make_family

RANKS = {"a": 8, "b": 8, "odd": 3, "c": 8}
LENGTHS = {"a": [5, 30, 30, 1], "b": [17], "odd": [4, 9], "c": [130, 2]}


@pytest.fixture(scope="module", params=["llama", "qwen3-moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(request.param, tmp_path_factory.mktemp("grouped"))


def trained(folder: Path) -> EngineDriver:
    driver = make_driver(folder, max_batch_tokens=8192)
    for seed, (run, rank) in enumerate(RANKS.items()):
        trained_run(driver, run, shape(rank), seed=seed)
    return driver


@pytest.fixture
def drivers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[EngineDriver, EngineDriver]:
    """With products one by one, and with grouped ones, as if the device wanted these."""
    plain = trained(folder)
    for user in ("experts", "causal_lm"):
        monkeypatch.setattr(f"mint.models.{user}.can_group", lambda _: True)
    return plain, trained(folder)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that grouped products are asked for."""
    asked: list[torch.Size] = []
    original = torch.nn.functional.grouped_mm

    def watch(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append(x.shape)
        return original(x, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", watch)
    return asked


def test_passes_and_gradients(drivers: tuple[EngineDriver, EngineDriver], calls: list[torch.Size]) -> None:
    rng = np.random.default_rng(0)
    passes = [policy_pass(run, lengths, "cross_entropy", rng) for run, lengths in LENGTHS.items()]
    expected = drivers[0].together(passes)
    assert not calls
    found = drivers[1].together(passes)
    assert calls
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_pass(ours, theirs, BOUND)
    for run in RANKS:
        assert_same_gradients(gradients(drivers[1], run), gradients(drivers[0], run), BOUND)


def test_samples(drivers: tuple[EngineDriver, EngineDriver], tmp_path: Path) -> None:
    answers = []
    for place, driver in enumerate(drivers):
        revisions = [export(driver, run, tmp_path / f"{run}-{place}") for run in RANKS]
        prompts = [np.arange(5, 25 + place, dtype=np.int32) for place in range(len(revisions) + 1)]
        params = SamplingParams(max_tokens=8, seed=3)
        requests = [Sample(*pair, 2, params) for pair in zip([*revisions, None], prompts, strict=True)]
        answers.append(driver.together(requests))
    for ours, theirs in zip(*answers, strict=True):
        for mine, other in zip(ours.sequences, theirs.sequences, strict=True):
            assert mine.tokens.tolist() == other.tokens.tolist()
            np.testing.assert_allclose(mine.logprobs, other.logprobs, rtol=0, atol=BOUND)
