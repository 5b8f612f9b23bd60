"""Reverse KL through the SDK against a live server: losses and gradients against the two whole distributions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tinker

import mint
import mint.mint as mintx
from mint.tiny import NAME, model_path

from .sdk import SECONDS, backward, batch, logprobs_of, run_of, step, tokens_of, train

Matrix = npt.NDArray[np.float64]
VOCABULARY = json.loads((model_path() / "config.json").read_text())["vocab_size"]
HINT, PROMPT, ANSWER = tokens_of(1, 5), tokens_of(2, 6), tokens_of(3, 8)
STUDENT, REFERENCE = (PROMPT + ANSWER)[:-1], (HINT + PROMPT + ANSWER)[:-1]
WEIGHTS = np.linspace(-0.5, 2, len(ANSWER)).astype(np.float32).tolist()


def whole_vocabulary(tokens: list[int], weights: Matrix | None = None) -> mint.types.Datum:
    """Every token is a target at each of the last positions, those of the answer."""
    targets = np.tile(np.arange(VOCABULARY), (len(tokens), 1))
    full = np.zeros(targets.shape, np.float32)
    if weights is not None:
        full[-len(weights) :] = weights
    tensors = {"target_tokens": targets, "weights": full}
    inputs = {name: mint.types.TensorData.from_numpy(tensor) for name, tensor in tensors.items()}
    return mint.types.Datum(model_input=mint.types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def distributions(run: mint.TrainingClient, tokens: list[int], temperature: float = 1.0) -> Matrix:
    """Log-probabilities (N, V) at the positions of the answer."""
    (output,) = run.forward([whole_vocabulary(tokens)], "cross_entropy").result(SECONDS).loss_fn_outputs
    logits = output["logprobs"].to_numpy().astype(np.float64).reshape(len(tokens), VOCABULARY)[-len(ANSWER) :]
    assert np.exp(logits).sum(axis=1) == pytest.approx(1, abs=1e-4)
    scaled = logits / temperature
    normalised: Matrix = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return normalised


def divergence(student: Matrix, reference: Matrix) -> Matrix:
    """KL (N,) of each position."""
    terms: Matrix = (np.exp(student) * (student - reference)).sum(axis=1)
    return terms


def reverse_kl_datum(**fields: Any) -> mintx.ReverseKLDatum:
    return mintx.ReverseKLDatum(STUDENT, REFERENCE, ANSWER, **fields)


@pytest.fixture
def student(alice: mint.ServiceClient) -> mint.TrainingClient:
    run = run_of(alice, seed=1)
    train(run, 20, 3)
    return run


@pytest.fixture
def teacher(alice: mint.ServiceClient) -> mint.TrainingClient:
    run = run_of(alice, seed=2, rank=8)
    train(run, 30, 4)
    return run


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_losses_are_the_divergence_of_the_two_models(
    student: mint.TrainingClient, teacher: mint.TrainingClient, temperature: float
) -> None:
    path = teacher.save_weights_for_sampler("teacher").result(SECONDS).path
    data = [reverse_kl_datum(weights=WEIGHTS), reverse_kl_datum()]
    output = mintx.forward_backward_reverse_kl(student, data, path, temperature).result(SECONDS)
    terms = divergence(distributions(student, STUDENT, temperature), distributions(teacher, REFERENCE, temperature))
    expected = [float(terms @ WEIGHTS), float(terms.sum())]
    assert output.losses == pytest.approx(expected, rel=1e-4)
    assert min(terms) > 1e-3
    assert output.metrics["loss:sum"] == pytest.approx(sum(expected), rel=1e-4)
    assert output.metrics["loss:mean"] == pytest.approx(sum(expected) / 2, rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradients_are_those_of_the_divergence(alice: mint.ServiceClient, temperature: float) -> None:
    """A cross-entropy over the whole vocabulary has, by the right weights, the same gradient by the logits.

    d KL / d logits = p·(log p − log q − KL) / τ = −ω, and that of −Σ ω·log p is −ω where Σ ω = 0.
    """
    ours, theirs = run_of(alice, seed=1), run_of(alice, seed=1)
    for run in (ours, theirs):
        train(run, 20, 3)
    base = run_of(alice, seed=5)
    data = [reverse_kl_datum(weights=WEIGHTS)]
    mintx.forward_backward_reverse_kl(ours, data, NAME, temperature).result(SECONDS)
    student, reference = (
        distributions(run, tokens, temperature) for run, tokens in ((theirs, STUDENT), (base, REFERENCE))
    )
    centred = student - reference - divergence(student, reference)[:, None]
    omega = -np.exp(student) * centred * np.array(WEIGHTS)[:, None] / temperature
    backward(theirs, [whole_vocabulary(STUDENT, omega)])
    assert step(ours)["grad_norm"] == pytest.approx(step(theirs)["grad_norm"], rel=1e-4)
    after, expected = (logprobs_of(run.forward(batch(9), "cross_entropy").result(SECONDS)) for run in (ours, theirs))
    for mine, other in zip(after, expected, strict=True):
        np.testing.assert_allclose(mine, other, atol=5e-5)


def test_gradients_add_up_with_those_of_other_passes(alice: mint.ServiceClient) -> None:
    """Sent without waiting, in the order of the calls; pieces add up to the whole."""
    whole, parts = run_of(alice), run_of(alice)
    for run in (whole, parts):
        train(run, 20, 2)
        run.forward_backward(batch(1), "cross_entropy")
    data = [reverse_kl_datum(weights=WEIGHTS), reverse_kl_datum()]
    mintx.forward_backward_reverse_kl(whole, data)
    futures = [mintx.forward_backward_reverse_kl(parts, [each]) for each in data]
    assert step(parts)["grad_norm"] == pytest.approx(step(whole)["grad_norm"], rel=1e-4)
    assert all(future.result(SECONDS).losses[0] != 0 for future in futures)


def test_the_way_to_the_reference_is_downhill(student: mint.TrainingClient, teacher: mint.TrainingClient) -> None:
    path = teacher.save_state("teacher").result(SECONDS).path
    losses = []
    for _ in range(6):
        future = mintx.forward_backward_reverse_kl(student, [reverse_kl_datum()], path)
        step(student, 1e-3)
        losses.append(future.result(SECONDS).losses[0])
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_at_the_reference_has_nothing_to_learn(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    data = [mintx.ReverseKLDatum(STUDENT, STUDENT, ANSWER)]
    output = mintx.forward_backward_reverse_kl(run, data).result(SECONDS)
    assert output.losses == pytest.approx([0.0], abs=1e-5)
    assert step(run)["grad_norm"] == pytest.approx(0, abs=1e-4)


def test_refusals_reach_the_user_and_the_client_goes_on(alice: mint.ServiceClient, bob: mint.ServiceClient) -> None:
    run, theirs = run_of(alice), run_of(bob)
    path = theirs.save_state("a").result(SECONDS).path
    good = reverse_kl_datum()
    for data, reference, error, named in (
        ([good, reverse_kl_datum(weights=[1.0])], None, tinker.BadRequestError, r"data\[1\].weights"),
        ([good], path, tinker.PermissionDeniedError, "reference_model_path"),
        ([good], "tinker://x:train:0/weights/a", tinker.NotFoundError, "reference_model_path"),
    ):
        with pytest.raises(error, match=named):
            mintx.forward_backward_reverse_kl(run, data, reference).result(SECONDS)
    assert backward(run, batch(0)).metrics["loss:sum"] == pytest.approx(backward(theirs, batch(0)).metrics["loss:sum"])
    assert step(run)["grad_norm"] == pytest.approx(step(theirs)["grad_norm"], rel=1e-5)
