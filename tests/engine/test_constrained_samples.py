"""Constraints of samples in a batch: each is met, and nobody else notices."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from mint.engine.core import Constraint, Sample, Sampled, SamplingParams
from mint.errors import BadRequestError
from mint.tiny import model_path
from tests.engine.conftest import EngineDriver, make_driver

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = Constraint("json_schema", json.dumps(SCHEMA))
DATE = Constraint("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@pytest.fixture(scope="module")
def driver() -> EngineDriver:
    return make_driver(Path(model_path()))


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(model_path())


def command(constraint: Constraint | None, seed: int = 0, samples: int = 3, **params: object) -> Sample:
    prompt = np.arange(40, 60, dtype=np.int32)
    wanted = SamplingParams(**{"max_tokens": 120, "seed": seed, "constraint": constraint, **params})
    return Sample(None, prompt, samples, wanted)


def texts(tokenizer: object, result: object) -> list[str]:
    assert isinstance(result, Sampled), result
    return [tokenizer.decode(s.tokens, skip_special_tokens=True) for s in result.sequences]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_each_sample_meets_its_constraint(driver: EngineDriver, tokenizer: object, temperature: float) -> None:
    wanted = [command(JSON, temperature=temperature), command(DATE, temperature=temperature), command(None)]
    objects, dates, _ = driver.together(wanted)
    for text in texts(tokenizer, dates):
        assert re.fullmatch(DATE.text, text), text
    for sequence, text in zip(objects.sequences, texts(tokenizer, objects), strict=True):
        assert np.isfinite(sequence.logprobs).all()
        if sequence.stop_reason == "stop":
            assert set(json.loads(text)) == {"name", "age"}
    assert {sequence.stop_reason for sequence in dates.sequences} == {"stop"}, "nothing may follow: it ends by itself"


def test_neighbours_without_a_constraint_do_not_notice(driver: EngineDriver) -> None:
    free = command(None, seed=5)
    (alone,) = driver.together([free])
    _, beside, _ = driver.together([command(JSON), free, command(DATE)])
    for ours, theirs in zip(beside.sequences, alone.sequences, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_a_constrained_sample_is_the_same_after_it_gave_its_blocks_back(driver: EngineDriver) -> None:
    small = make_driver(Path(model_path()), kv_cache_bytes=driver_bytes(driver, blocks=12), kv_block_size=16)
    wanted = [command(DATE, seed=seed, samples=4) for seed in range(3)]
    for ours, theirs in zip(small.together(wanted), driver.together(wanted), strict=True):
        assert [s.tokens.tolist() for s in ours.sequences] == [s.tokens.tolist() for s in theirs.sequences]


def driver_bytes(driver: EngineDriver, blocks: int) -> int:
    memory = driver.engine._generator._cache._memory
    return blocks * memory[:, 0].nbytes


@pytest.mark.parametrize("constraint", [Constraint("regex", "("), Constraint("json_schema", '{"type": 3}')])
def test_what_is_no_constraint_is_refused_alone(driver: EngineDriver, constraint: Constraint) -> None:
    refused, served = driver.together([command(constraint), command(DATE)])
    assert isinstance(refused, BadRequestError)
    assert refused.field == "response_format"
    assert isinstance(served, Sampled)


def test_log_probabilities_are_of_the_masked_distribution(driver: EngineDriver) -> None:
    """Digits alone may begin: their probabilities sum to 1."""
    result = driver.one(replace(command(Constraint("regex", "[0-9]"), samples=1), top_logprobs=20))
    tops = result.sequences[0].top
    assert tops is not None
    assert np.exp(tops.logprobs[0][np.isfinite(tops.logprobs[0])]).sum() == pytest.approx(1, abs=1e-4)
