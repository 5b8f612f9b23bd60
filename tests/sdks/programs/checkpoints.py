"""Checkpoints: saved, loaded with and without the optimizer, trained on as a new run, sampled."""

from __future__ import annotations

import tinker

from .common import MODEL, SECONDS, batch, close, finish, loss_of, run_of, service, step


def main() -> None:
    client = service()
    run, data = run_of(client), batch(3)
    _train(run, data)
    saved = run.save_state("half").result(SECONDS).path
    assert saved == f"tinker://{run.model_id}/weights/half", saved
    expected = _train(run, data)
    close(_loaded(run, saved, data), expected)
    fresh = client.create_training_client_from_state(saved)
    close(_loss(fresh, data), _loss_at(run, saved, data))
    if hasattr(client, "create_training_client_from_state_with_optimizer"):
        close(_train(client.create_training_client_from_state_with_optimizer(saved), data), expected)
    _revisions(client, run)
    finish(client)


def _train(run: tinker.TrainingClient, data: list[tinker.Datum]) -> float:
    """One step; the loss after it."""
    run.forward_backward(data, "cross_entropy").result(SECONDS)
    step(run)
    return _loss(run, data)


def _loss(run: tinker.TrainingClient, data: list[tinker.Datum]) -> float:
    return loss_of(run.forward(data, "cross_entropy").result(SECONDS))


def _loaded(run: tinker.TrainingClient, path: str, data: list[tinker.Datum]) -> float:
    """The loss after a step from a checkpoint with the optimizer's state."""
    run.load_state_with_optimizer(path).result(SECONDS)
    return _train(run, data)


def _loss_at(run: tinker.TrainingClient, path: str, data: list[tinker.Datum]) -> float:
    run.load_state(path).result(SECONDS)
    return _loss(run, data)


def _revisions(client: tinker.ServiceClient, run: tinker.TrainingClient) -> None:
    path = run.save_weights_for_sampler("kept").result(SECONDS).path
    assert path == f"tinker://{run.model_id}/sampler_weights/kept", path
    prompt = tinker.ModelInput.from_ints([5, 6, 7, 8])
    named = client.create_sampling_client(model_path=path).compute_logprobs(prompt).result(SECONDS)
    unnamed = run.save_weights_and_get_sampling_client("any").compute_logprobs(prompt).result(SECONDS)
    base = client.create_sampling_client(base_model=MODEL).compute_logprobs(prompt).result(SECONDS)
    assert named[0] is unnamed[0] is None
    for left, right in zip(named[1:], unnamed[1:], strict=True):
        close(left, right)
    assert any(abs(left - right) > 1e-3 for left, right in zip(named[1:], base[1:], strict=True)), (named, base)
