"""The official SDK's RestClient and AdminClient, over HTTP and over a restart of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from tinker import types

import mint
from mint.tiny import NAME

from .live import ALICE, BOB, LiveServer, tiny_model
from .sdk import SECONDS, backward, batch, run_of, step


def tml(key: str) -> str:
    """The form of a key that the SDK takes."""
    return key.replace("sk-", "tml-")


@pytest.fixture
def rest(live: LiveServer) -> tinker.RestClient:
    return tinker.RestClient(base_url=live.url, api_key=tml(ALICE))


@pytest.fixture
def stranger(live: LiveServer) -> tinker.RestClient:
    return tinker.RestClient(base_url=live.url, api_key=tml(BOB))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """A server of a test's own, which can be stopped."""
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    server = LiveServer(tmp_path, "--model", tiny_model(tmp_path)).start()
    yield server
    server.stop()


def test_a_run_and_its_checkpoints(alice: mint.ServiceClient, rest: tinker.RestClient) -> None:
    run = run_of(alice)
    first = run.save_state("first", ttl_seconds=7200, user_metadata={"step": "0"}).result(SECONDS).path
    second = run.save_state("second").result(SECONDS).path
    sampler = run.save_weights_for_sampler("revision").result(SECONDS).path
    listed = rest.list_checkpoints(run.model_id).result(SECONDS).checkpoints
    assert [each.tinker_path for each in listed] == [sampler, second, first]
    assert [each.checkpoint_type for each in listed] == ["sampler", "training", "training"]
    assert (listed[-1].user_metadata, listed[-1].expires_at is None) == ({"step": "0"}, False)
    assert all(each.size_bytes > 1000 for each in listed)

    found = rest.get_training_run(run.model_id).result(SECONDS)
    assert (found.base_model, found.lora_rank, found.corrupted) == (NAME, 4, False)
    assert found.last_checkpoint.tinker_path == second
    assert found.last_sampler_checkpoint.tinker_path == sampler
    assert rest.get_training_run_by_tinker_path(first).result(SECONDS) == found
    page = rest.list_training_runs(limit=1).result(SECONDS)
    assert page.training_runs == [found]
    assert page.cursor.total_count >= 1
    everything = rest.list_user_checkpoints(limit=3).result(SECONDS)
    assert everything.checkpoints == listed
    assert everything.cursor.total_count >= 3

    info = rest.get_weights_info_by_tinker_path(sampler).result(SECONDS)
    assert (info.base_model, info.lora_rank, info.train_attn) == (NAME, 4, True)


@pytest.mark.filterwarnings("ignore::tinker.ExperimentalWarning")
def test_sessions_and_projects(alice: mint.ServiceClient, rest: tinker.RestClient) -> None:
    run = run_of(alice)
    session_id = run.model_id.partition(":")[0]
    alice.create_sampling_client(base_model=NAME).result(SECONDS)
    assert session_id in rest.list_sessions(limit=50).result(SECONDS).sessions
    session = rest.get_session(session_id).result(SECONDS)
    assert run.model_id in session.training_run_ids
    (sampler_id,) = session.sampler_ids
    assert rest.get_sampler(sampler_id).result(SECONDS).base_model == NAME
    rest.assign_session_project(session_id, "my project").result(SECONDS)
    runs = rest.list_training_runs(project_id="my project").result(SECONDS).training_runs
    assert [each.training_run_id for each in runs] == [run.model_id]
    request = types.SessionSearchRequest(project_ids=["my project"], session_id=session_id)
    (summary,) = rest.search_sessions(request).result(SECONDS).sessions
    assert (summary.session_id, summary.project_id, summary.status.type) == (session_id, "my project", "active")


@pytest.mark.filterwarnings("ignore::tinker.ExperimentalWarning")
def test_pages_of_search(rest: tinker.RestClient, live: LiveServer) -> None:
    made = [live.post("create_session", {"display_name": "pages of search"}).json()["session_id"] for _ in range(3)]
    request = types.SessionSearchRequest(display_name="pages search", limit=2)
    first = rest.search_sessions(request).result(SECONDS)
    rest_of = rest.search_sessions(request.model_copy(update={"cursor": first.next_cursor})).result(SECONDS)
    assert [each.session_id for each in first.sessions + rest_of.sessions] == made[::-1]
    assert rest_of.next_cursor is None


def test_sharing(
    alice: mint.ServiceClient, bob: mint.ServiceClient, rest: tinker.RestClient, stranger: tinker.RestClient
) -> None:
    run = run_of(alice)
    backward(run, batch(1))
    step(run)
    path = run.save_state("shared").result(SECONDS).path
    with pytest.raises(tinker.PermissionDeniedError):
        stranger.get_weights_info_by_tinker_path(path).result(SECONDS)
    rest.publish_checkpoint_from_tinker_path(path).result(SECONDS)
    theirs = bob.create_training_client_from_state(path).result(SECONDS)
    mine = backward(run, batch(2)).metrics["loss:sum"]
    assert backward(theirs, batch(2)).metrics["loss:sum"] == pytest.approx(mine, abs=1e-5)
    with pytest.raises(tinker.PermissionDeniedError):
        stranger.delete_checkpoint_from_tinker_path(path).result(SECONDS)
    with pytest.raises(tinker.PermissionDeniedError):
        stranger.set_checkpoint_ttl_from_tinker_path(path, 3600).result(SECONDS)
    rest.unpublish_checkpoint_from_tinker_path(path).result(SECONDS)
    with pytest.raises(tinker.PermissionDeniedError):
        stranger.get_weights_info_by_tinker_path(path).result(SECONDS)


def test_deletion_refuses_or_finishes(alice: mint.ServiceClient, rest: tinker.RestClient) -> None:
    run = run_of(alice)
    path = run.save_weights_for_sampler("used").result(SECONDS).path
    alice.create_sampling_client(model_path=path).result(SECONDS)
    with pytest.raises(tinker.BadRequestError, match="in use by sampler"):
        rest.delete_checkpoint_from_tinker_path(path).result(SECONDS)
    unused = run.save_state("unused").result(SECONDS).path
    rest.delete_checkpoint_from_tinker_path(unused).result(SECONDS)
    with pytest.raises(tinker.NotFoundError):
        rest.get_weights_info_by_tinker_path(unused).result(SECONDS)
    assert [each.tinker_path for each in rest.list_checkpoints(run.model_id).result(SECONDS).checkpoints] == [path]


def test_a_copy(alice: mint.ServiceClient, rest: tinker.RestClient) -> None:
    run = run_of(alice)
    path = run.save_weights_for_sampler("revision").result(SECONDS).path
    copy = rest.copy_weights(path, "archive", ttl_seconds=3600).result(SECONDS)
    rest.delete_checkpoint_from_tinker_path(path).result(SECONDS)
    prompt = types.ModelInput.from_ints([5, 6, 7])
    sampler = alice.create_sampling_client(model_path=copy).result(SECONDS)
    params = types.SamplingParams(max_tokens=2, seed=1)
    sampled = sampler.sample(prompt, num_samples=1, sampling_params=params)
    assert len(sampled.result(SECONDS).sequences[0].tokens) == 2


def test_storage(alice: mint.ServiceClient, live: LiveServer) -> None:
    run_of(alice).save_state("stored").result(SECONDS)
    admin = tinker.AdminClient(base_url=live.url, api_key=tml(ALICE))
    usage = {row.project_id: row for row in admin.get_current_checkpoint_storage_usage().result(SECONDS).data}
    assert usage["default"].checkpoint_count >= 1
    assert usage["default"].size_gigabytes == usage["default"].size_bytes / 1e9
    (only,) = admin.get_current_checkpoint_storage_usage(project_id="default").result(SECONDS).data
    assert only == usage["default"]


def test_all_is_there_after_a_restart(own: LiveServer) -> None:
    with mint.ServiceClient(base_url=own.url, api_key=ALICE) as service:
        run = run_of(service)
        backward(run, batch(1))
        step(run)
        path = run.save_state("kept", user_metadata={"a": "b"}).result(SECONDS).path
        gone = run.save_state("gone").result(SECONDS).path
        rest = tinker.RestClient(base_url=own.url, api_key=tml(ALICE))
        rest.publish_checkpoint_from_tinker_path(path).result(SECONDS)
        rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result(SECONDS)
        rest.delete_checkpoint_from_tinker_path(gone).result(SECONDS)
        copy = rest.copy_weights(path, "archive").result(SECONDS)

        def seen() -> list[Any]:
            return [
                rest.list_user_checkpoints().result(SECONDS),
                rest.list_training_runs().result(SECONDS),
                rest.get_session(run.model_id.partition(":")[0]).result(SECONDS),
            ]

        before = seen()
        assert [each.tinker_path for each in before[0].checkpoints] == [copy, path]
        loss = backward(run, batch(2)).metrics["loss:sum"]
        before[1] = None  # its last request is a later one now
        own.kill()
        own.start()
        assert [None if number == 1 else view for number, view in enumerate(seen())] == before
        with mint.ServiceClient(base_url=own.url, api_key=BOB) as bob:
            theirs = bob.create_training_client_from_state(path).result(SECONDS)
            assert np.isclose(backward(theirs, batch(2)).metrics["loss:sum"], loss, atol=1e-5)
        (folder,) = (own.folder / "data" / "checkpoints").iterdir()
        names = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
        assert names < {file.name for file in folder.iterdir()}
