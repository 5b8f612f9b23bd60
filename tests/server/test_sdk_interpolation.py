"""Sums of checkpoints, and sampling clients of saved weights, through the SDK against a live server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tinker
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import mint
import mint.mint as mintx
from mint import types
from mint.cli.main import app
from mint.store import checkpoints
from mint.store.database import Database
from mint.tiny import NAME, model_path

from .live import LiveServer
from .sdk import SECONDS, run_of, tokens_of, train

PROMPT = tokens_of(3, 40)
GREEDY = types.SamplingParams(max_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def sources(live: LiveServer) -> tuple[list[str], list[Path]]:
    """Two checkpoints of different shapes, one for training and one for sampling, and their folders."""
    with mint.ServiceClient(base_url=live.url, api_key="sk-alice-secret") as service:
        one, two = run_of(service, seed=1), run_of(service, seed=2, rank=7)
        train(one, 40, 3)
        train(two, 50, 3)
        paths = [one.save_state("one").result(SECONDS).path, two.save_weights_for_sampler("two").result(SECONDS).path]
    return paths, [folder_of(live, path) for path in paths]


def folder_of(live: LiveServer, path: str) -> Path:
    database = Database.at(live.folder / "data" / "mint.db")
    try:
        found = asyncio.run(database.transaction(lambda c: checkpoints.live(c, path)))
    finally:
        database.close()
    assert found is not None
    return live.folder / "data" / "checkpoints" / found.directory


def logprobs(service: mint.ServiceClient, path: str) -> np.ndarray:
    client = service.create_sampling_client(model_path=path).result(SECONDS)
    return np.array(client.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result(SECONDS)[1:])


def reference(model: Any) -> np.ndarray:
    """What transformers computes."""
    tokens = torch.tensor(PROMPT)
    with torch.no_grad():
        table = model(input_ids=tokens[None]).logits[0].log_softmax(dim=1)
    return table[:-1].gather(1, tokens[1:, None])[:, 0].numpy()


def test_the_sum_samples_as_pefts_does_and_trains_on(
    alice: mint.ServiceClient, live: LiveServer, sources: tuple[list[str], list[Path]]
) -> None:
    paths, folders = sources
    made = mintx.interpolate_checkpoints(alice, paths, [0.6, 0.9], "mean", user_metadata={"a": "b"}).result(SECONDS)
    assert made == mintx.InterpolatedCheckpoint(made.path, tuple(paths), (0.6, 0.9))
    assert made.path.endswith(":train:0/sampler_weights/mean")
    ours = logprobs(alice, made.path)
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folders[0], adapter_name="one")
    model.load_adapter(folders[1], adapter_name="two")
    model.add_weighted_adapter(["one", "two"], [0.6, 0.9], "sum", combination_type="cat")
    model.set_adapter("sum")
    np.testing.assert_allclose(ours, reference(model), atol=1e-4)
    model.load_adapter(folder_of(live, made.path), adapter_name="ours")
    model.set_adapter("ours")
    np.testing.assert_allclose(ours, reference(model), atol=1e-4)

    run = alice.create_training_client_from_state(made.path).result(SECONDS)
    assert run.get_info().lora_rank == 11
    before = run.save_weights_for_sampler("before").result(SECONDS).path
    np.testing.assert_allclose(logprobs(alice, before), ours, atol=1e-6)
    curve = train(run, 40, 3)
    assert curve[-1] != curve[0]
    assert np.abs(logprobs(alice, run.save_weights_for_sampler("after").result(SECONDS).path) - ours).max() > 1e-3


def test_a_weight_of_one_changes_nothing_and_two_halves_are_one(
    alice: mint.ServiceClient, sources: tuple[list[str], list[Path]]
) -> None:
    paths, _ = sources

    async def made(coefficients: list[float], which: list[str]) -> str:
        return (await mintx.interpolate_checkpoints(alice, which, coefficients)).path

    expected = logprobs(alice, paths[1])
    for coefficients, which in (
        ([1.0], paths[1:]),
        ([0.5, 0.5], paths[1:] * 2),
        ([1.0, 1.0, -1.0], [*paths, paths[0]]),
    ):
        ours = logprobs(alice, asyncio.run(made(coefficients, which)))
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_what_the_helper_refuses_and_what_the_server_does(alice: mint.ServiceClient, bob: mint.ServiceClient) -> None:
    path = run_of(alice).save_weights_for_sampler("a").result(SECONDS).path
    with pytest.raises(ValueError, match="1 source_paths and 2 coefficients"):
        mintx.interpolate_checkpoints(alice, [path], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        mintx.interpolate_checkpoints(alice, [path], [float("nan")])
    with pytest.raises(tinker.PermissionDeniedError, match=r"source_paths\[0\]"):
        mintx.interpolate_checkpoints(bob, [path], [1]).result(SECONDS)


def test_a_merged_model_computes_what_the_server_does(
    alice: mint.ServiceClient, live: LiveServer, sources: tuple[list[str], list[Path]], tmp_path: Path
) -> None:
    paths, folders = sources
    exact = tmp_path / "float32"
    AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).save_pretrained(exact)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(exact)
    # the built-in model is stored as bfloat16, and so is what is made of it
    for source, options, bound in (
        (paths[0], ["--base", str(exact)], 1e-4),
        (str(folders[0]), ["--base", str(exact)], 1e-4),
        (paths[0], [], 0.1),
    ):
        target = tmp_path / "models" / str(len(list(tmp_path.glob("models/*"))))
        arguments = ["checkpoints", "merge", source, "--output", str(target), "--data-dir", str(live.folder / "data")]
        done = CliRunner().invoke(app, [*arguments, *options])
        assert done.exit_code == 0, done.output
        assert str(target) in done.stdout
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        np.testing.assert_allclose(reference(model), logprobs(alice, paths[0]), atol=bound)
        assert [entry.name for entry in target.parent.iterdir() if entry.name.startswith(".")] == []


def test_saved_weights_are_sampled_in_one_operation(alice: mint.ServiceClient) -> None:
    run = run_of(alice, seed=5)
    train(run, 60, 2)
    named = mintx.save_and_create(run, "named").result(SECONDS)
    unnamed = mintx.save_and_create(run).result(SECONDS)
    assert named.path == f"tinker://{run.model_id}/sampler_weights/named"
    assert unnamed.path is None
    expected = logprobs(alice, named.path)
    train(run, 70, 2)
    for client in (named.sampling_client, unnamed.sampling_client):
        ours = np.array(client.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result(SECONDS)[1:])
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    # the SDK's own counting is not in its way
    assert (
        run.save_weights_and_get_sampling_client()
        .result(SECONDS)
        .sample(types.ModelInput.from_ints(PROMPT), 1, GREEDY)
        .result(SECONDS)
    )
    with pytest.raises(tinker.BadRequestError, match="exists"):
        mintx.save_and_create(run, "named").result(SECONDS)


def test_live_runs_are_listed_and_freed(alice: mint.ServiceClient, bob: mint.ServiceClient) -> None:
    run = run_of(alice, seed=6)
    curve = train(run, 80, 2)
    (mine,) = [model for model in mintx.list_models(alice).result(SECONDS) if model.model_id == run.model_id]
    assert (mine.base_model, mine.lora_rank, mine.loaded) == (NAME, 4, True)
    assert run.model_id not in [model.model_id for model in mintx.list_models(bob).result(SECONDS)]
    with pytest.raises(tinker.PermissionDeniedError):
        mintx.free_model(bob, run.model_id).result(SECONDS)

    async def freed() -> mintx.LiveModel:
        assert await mintx.free_model(alice, run.model_id) is None
        while (found := next(m for m in await mintx.list_models(alice) if m.model_id == run.model_id)).loaded:
            await asyncio.sleep(0.01)
        return found

    assert not asyncio.run(asyncio.wait_for(freed(), SECONDS)).loaded
    # it goes on where it was
    undisturbed = run_of(alice, seed=6)
    assert train(undisturbed, 80, 4) == pytest.approx(curve + train(run, 82, 2), abs=1e-5)
