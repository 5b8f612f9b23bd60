"""The REST client: runs, checkpoints, publishing, expiry, samplers."""

from __future__ import annotations

import tinker

from .common import MODEL, SECONDS, finish, run_of, service


def main() -> None:
    client = service()
    rest = client.create_rest_client()
    run = run_of(client)
    training = run.save_state("one").result(SECONDS).path
    sampling = run.save_weights_for_sampler("two").result(SECONDS).path
    assert rest.list_training_runs(limit=1).result(SECONDS).training_runs[0].training_run_id == run.model_id
    found = rest.get_training_run(run.model_id).result(SECONDS)
    assert (found.base_model, found.is_lora, found.lora_rank) == (MODEL, True, 4), found
    assert found.last_checkpoint.tinker_path == training
    info = rest.get_weights_info_by_tinker_path(training).result(SECONDS)
    assert (info.base_model, info.lora_rank) == (MODEL, 4), info
    _checkpoints(rest, run, training, sampling)
    _samplers(client, rest, sampling)
    finish(client)


def _checkpoints(rest: tinker.RestClient, run: tinker.TrainingClient, training: str, sampling: str) -> None:
    rest.publish_checkpoint_from_tinker_path(sampling).result(SECONDS)
    listed = {each.tinker_path: each for each in rest.list_checkpoints(run.model_id).result(SECONDS).checkpoints}
    assert set(listed) == {training, sampling}, listed
    assert (listed[training].public, listed[sampling].public) == (False, True)
    assert listed[training].checkpoint_type == "training"
    assert listed[training].size_bytes > 1000
    rest.unpublish_checkpoint_from_tinker_path(sampling).result(SECONDS)
    if hasattr(rest, "set_checkpoint_ttl_from_tinker_path"):
        rest.set_checkpoint_ttl_from_tinker_path(training, 7200).result(SECONDS)
    rest.delete_checkpoint_from_tinker_path(training).result(SECONDS)
    mine = rest.list_user_checkpoints(limit=100).result(SECONDS).checkpoints
    paths = [each.tinker_path for each in mine]
    assert sampling in paths
    assert training not in paths


def _samplers(client: tinker.ServiceClient, rest: tinker.RestClient, path: str) -> None:
    client.create_sampling_client(model_path=path)
    session_id = path.removeprefix("tinker://").partition(":train:")[0]
    (sampler_id,) = rest.get_session(session_id).result(SECONDS).sampler_ids
    sampler = rest.get_sampler(sampler_id).result(SECONDS)
    assert (sampler.base_model, sampler.model_path) == (MODEL, path), sampler
