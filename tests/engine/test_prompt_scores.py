"""What is asked about prompts: log-probabilities of their tokens, of others, the likeliest, alternatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mint.engine.core import PromptQuery
from tests.engine.sampling_support import BOUND, Sampling, make_prompt

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.mark.parametrize("run", ["base", "a", "b"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_prompt_logprobs(sampling: Sampling, run: str, length: int) -> None:
    prompt = make_prompt(20 + length, length)
    command = replace(sampling.command(run, prompt, 3), query=PromptQuery(last=999))
    others = [sampling.command("a", make_prompt(21, 13)), replace(command, revision=None)]
    result, *_ = sampling.driver.together([command, *others])
    assert result.prompt.logprobs.dtype == np.float32
    assert result.prompt.logprobs.shape == (length,)
    assert np.isnan(result.prompt.logprobs[0])
    if length > 1:
        expected = sampling.trainer_logprobs(run, prompt)
        np.testing.assert_allclose(result.prompt.logprobs[1:], expected, rtol=0, atol=BOUND)
    assert sampling.driver.one(replace(command, query=PromptQuery())).prompt.logprobs is None
