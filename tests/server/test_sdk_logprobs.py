"""What the SDK can ask about prompts and likeliest tokens, against a live server: all answers agree with each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mint
from mint import types
from mint.tiny import NAME

from .sdk import SECONDS, logprobs_of, run_of, tokens_of

PROMPT = tokens_of(5, 12)
ROWS = len(PROMPT) - 1
NEAR = 1e-5


def ask(client: mint.SamplingClient, prompt: list[int] = PROMPT, **options: Any) -> Any:
    params = types.SamplingParams(
        **{"max_tokens": 1, "stop": [], "seed": 1, "temperature": options.pop("temperature", 1.0)}
        | {name: options.pop(name) for name in ("max_tokens", "seed") if name in options}
    )
    future = client.sample(types.ModelInput.from_ints(prompt), options.pop("num_samples", 1), params, **options)
    return future.result(SECONDS)


def targets_of(client: mint.SamplingClient, ids: Any) -> Any:
    """Log-probabilities of ids (ROWS, K)."""
    tensor = types.TensorData.from_numpy(np.asarray(ids, np.int64))
    return ask(client, target_prompt_logprobs=tensor).target_prompt_logprobs.to_numpy()


@pytest.fixture
def base(alice: mint.ServiceClient) -> mint.SamplingClient:
    return alice.create_sampling_client(base_model=NAME).result(SECONDS)


def test_targets_are_what_the_trainer_says(alice: mint.ServiceClient, base: mint.SamplingClient) -> None:
    ids = np.random.default_rng(0).integers(0, 500, (ROWS, 3))
    ids[:, 0] = PROMPT[1:]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(PROMPT[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(ids),
            "weights": types.TensorData.from_numpy(np.ones((ROWS, 3), np.float32)),
        },
    )
    (trainer,) = logprobs_of(run_of(alice).forward([datum], "cross_entropy").result(SECONDS))
    answer = targets_of(base, ids)
    np.testing.assert_allclose(answer, np.reshape(trainer, (ROWS, 3)), atol=NEAR)
    own = base.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result(SECONDS)
    np.testing.assert_allclose(answer[:, 0], own[1:], atol=NEAR)


def test_sparse_and_dense_targets_are_the_same(base: mint.SamplingClient) -> None:
    ids = torch.full((ROWS, 40), -1)
    ids[2, 7], ids[2, 30], ids[ROWS - 1, 0] = 9, 10, 11
    sparse = types.TensorData.from_torch_sparse(ids, pad_value=-1)
    assert sparse.sparse_crow_indices is not None
    answer = ask(base, target_prompt_logprobs=sparse).target_prompt_logprobs
    assert (answer.shape, answer.sparse_col_indices) == (sparse.shape, sparse.sparse_col_indices)
    dense = targets_of(base, ids.numpy())
    np.testing.assert_allclose(answer.to_numpy(), dense, atol=NEAR)
    assert np.count_nonzero(dense) == 3
    assert (dense[ids.numpy() >= 0] < 0).all()


@pytest.mark.parametrize("last", [None, 4])
def test_the_likeliest_tokens_of_a_prompt(base: mint.SamplingClient, last: int | None) -> None:
    k, scored = 5, ROWS if last is None else last
    result = ask(base, include_prompt_logprobs=True, topk_prompt_logprobs=k, prompt_logprobs_last_n=last)
    rows = result.topk_prompt_logprobs
    assert rows[:-scored] == result.prompt_logprobs[:-scored] == [None] * (len(PROMPT) - scored)
    ids = np.array([[token for token, _ in row] for row in rows[-scored:]])
    logprobs = np.array([[logprob for _, logprob in row] for row in rows[-scored:]])
    assert ids.shape == (scored, k)
    assert (np.diff(logprobs, axis=1) <= 0).all()
    whole = np.full((ROWS, k), -1)
    whole[-scored:] = ids
    np.testing.assert_allclose(logprobs, targets_of(base, whole)[-scored:], atol=NEAR)
    # nothing is likelier than the first: not the prompt's own token, nor any of a crowd of others
    assert (np.array(result.prompt_logprobs[-scored:]) <= logprobs[:, 0] + NEAR).all()
    crowd = targets_of(base, np.tile(np.arange(500), (ROWS, 1)))[-scored:]
    assert (np.sort(crowd, axis=1)[:, -1] <= logprobs[:, 0] + NEAR).all()


def test_the_likeliest_tokens_of_a_sample(base: mint.SamplingClient) -> None:
    (greedy,) = ask(base, max_tokens=6, temperature=0.0, topk_sample_logprobs=3).sequences
    assert [row[0][0] for row in greedy.topk_logprobs] == greedy.tokens
    np.testing.assert_allclose([row[0][1] for row in greedy.topk_logprobs], greedy.logprobs, atol=NEAR)
    drawn = ask(base, max_tokens=6, num_samples=4, topk_sample_logprobs=3).sequences
    for sequence in drawn:
        assert [len(row) for row in sequence.topk_logprobs] == [3] * 6
        for token, logprob, row in zip(sequence.tokens, sequence.logprobs, sequence.topk_logprobs, strict=True):
            assert logprob == pytest.approx(dict(row).get(token, logprob), abs=NEAR)
            assert logprob <= row[0][1] + NEAR


def test_alternatives_to_the_tokens_of_a_prompt(base: mint.SamplingClient) -> None:
    alternatives = ask(base, prompt_alt_tokens_k=8, seed=3).prompt_alt_tokens
    ids, logprobs = alternatives.tokens.to_numpy(), alternatives.logprobs.to_numpy()
    assert ids.shape == logprobs.shape == (ROWS, 8)
    np.testing.assert_allclose(logprobs, targets_of(base, ids), atol=NEAR)
    assert len({tuple(row) for row in ids.T}) > 1
    again = ask(base, prompt_alt_tokens_k=8, seed=3).prompt_alt_tokens
    np.testing.assert_array_equal(again.tokens.to_numpy(), ids)
    other = ask(base, prompt_alt_tokens_k=8, seed=4).prompt_alt_tokens
    assert (other.tokens.to_numpy() != ids).any()
    coldest = ask(base, prompt_alt_tokens_k=2, temperature=0.0).prompt_alt_tokens.tokens.to_numpy()
    likeliest = ask(base, topk_prompt_logprobs=1).topk_prompt_logprobs[1:]
    assert coldest.tolist() == [[row[0][0]] * 2 for row in likeliest]


def test_all_at_once_is_what_each_is_alone(base: mint.SamplingClient) -> None:
    ids = np.random.default_rng(1).integers(0, 500, (ROWS, 2))
    whole = ask(
        base,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=2,
        target_prompt_logprobs=types.TensorData.from_numpy(ids),
        prompt_alt_tokens_k=2,
        prompt_logprobs_last_n=3,
        num_samples=2,
        max_tokens=3,
    )
    alone = base.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result(SECONDS)
    np.testing.assert_allclose(whole.prompt_logprobs[-3:], alone[-3:], atol=NEAR)
    np.testing.assert_allclose(whole.target_prompt_logprobs.to_numpy(), targets_of(base, ids), atol=NEAR)
    assert [row is None for row in whole.topk_prompt_logprobs] == [True] * (len(PROMPT) - 3) + [False] * 3
    assert whole.prompt_alt_tokens.tokens.shape == [ROWS, 2]
    assert [len(sequence.topk_logprobs) for sequence in whole.sequences] == [3, 3]


def test_a_prompt_that_is_known_costs_its_new_tokens_only(base: mint.SamplingClient) -> None:
    prompt = tokens_of(77, 200)
    first, second = [ask(base, prompt, include_prompt_logprobs=True, prompt_logprobs_last_n=5) for _ in range(2)]
    assert first.prompt_cache_hit_tokens == 0
    assert 100 < second.prompt_cache_hit_tokens < 200
    np.testing.assert_allclose(first.prompt_logprobs[-5:], second.prompt_logprobs[-5:], atol=NEAR)
    assert first.sequences[0].tokens == second.sequences[0].tokens
    longer = ask(base, [*prompt, *tokens_of(78, 20)])
    assert longer.prompt_cache_hit_tokens > 100
