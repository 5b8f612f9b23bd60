"""A session: begun, found, and ended where the SDK can end one."""

from __future__ import annotations

import tinker

from .common import MODEL, SECONDS, finish, run_of, service


def main() -> None:
    client = service()
    served = [model.model_name for model in client.get_server_capabilities().supported_models]
    assert MODEL in served, served
    run = run_of(client)
    assert run.get_info().model_data.model_name == MODEL
    session_id = run.model_id.partition(":train:")[0]
    rest = client.create_rest_client()
    assert session_id in rest.list_sessions(limit=20).result(SECONDS).sessions
    assert rest.get_session(session_id).result(SECONDS).training_run_ids == [run.model_id]
    finish(client)
    if hasattr(client, "close"):
        _refused_after_the_end(run)


def _refused_after_the_end(run: tinker.TrainingClient) -> None:
    try:
        run.save_state("late").result(SECONDS)
    except (tinker.TinkerError, RuntimeError):  # the server's refusal, or that of an SDK that is closed by then
        return
    raise AssertionError("a session that has ended took work")
