"""Checkpoints that leave the server and come to it: by the official command, by `mint`, and to and from `peft`."""

from __future__ import annotations

import asyncio
import json
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import peft
import pyrage
import pytest
import tinker
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import mint
import mint.mint as mintx
from mint import types
from mint.cli.main import app
from mint.tiny import model_path

from .live import ALICE, BOB, LiveServer
from .sdk import SECONDS, backward, batch, datum, logprobs_of, run_of, step, tokens_of, train
from .test_tinker_cli import Command

WEIGHTS, CONFIG, OPTIMIZER = "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"
RATE = 1e-2


@pytest.fixture(autouse=True)
def server(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where `mint`'s own calls go."""
    monkeypatch.setenv("MINT_BASE_URL", live.url)
    monkeypatch.setenv("MINT_API_KEY", ALICE)
    return {"base_url": live.url, "api_key": ALICE}


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)


def logprobs(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([tokens[:-1]])).logits[0]
    return torch.log_softmax(logits, 1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def forward(run: mint.TrainingClient, tokens: list[int]) -> torch.Tensor:
    output = run.forward([datum(tokens)], "cross_entropy").result(SECONDS)
    return torch.tensor(logprobs_of(output)[0])


def test_the_official_command_downloads_a_training_checkpoint(
    alice: mint.ServiceClient, live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tokens = run_of(alice), tokens_of(3)
    train(run, 0, 2)
    path = run.save_state("first").result(SECONDS).path
    expected = forward(run, tokens)
    command = Command(live, ALICE)
    command.ok("checkpoint", "download", path, "--output", str(tmp_path))
    (config,) = tmp_path.rglob(CONFIG)
    adapted = peft.PeftModel.from_pretrained(base(), config.parent)
    with torch.no_grad():
        torch.testing.assert_close(logprobs(adapted, tokens), expected, rtol=0, atol=1e-4)
    listed = command.json("checkpoint", "list", "--limit", "0")["checkpoints"]
    assert "external_weights/download" not in {row["checkpoint_id"] for row in listed}, "it deletes what it exports"
    monkeypatch.setenv("MINT_API_KEY", BOB)  # it wins over the command's
    stranger = Command(live, BOB).refusal("checkpoint", "download", path, "--output", str(tmp_path / "bob"))
    assert "another API key" in stranger


def test_external_weights_are_encrypted_to_whom_the_sdk_names(
    alice: mint.ServiceClient, live: LiveServer, tmp_path: Path
) -> None:
    run, identity = run_of(alice), pyrage.x25519.Identity.generate()
    train(run, 0, 1)
    plain = run.save_weights_external("plain").result(SECONDS).path
    recipients = [str(identity.to_public())]
    sealed = run.save_weights_external("sealed", age_encryption_recipients=recipients).result(SECONDS).path
    rest = alice.create_rest_client()
    contents = {}
    for path in (plain, sealed):
        answer = rest.get_external_weights_urls(path).result(SECONDS)
        contents[path] = {name: urllib.request.urlopen(url).read() for name, url in answer.urls.items()}
    assert contents[plain].keys() == {WEIGHTS, CONFIG}
    assert contents[sealed].keys() == {f"{WEIGHTS}.age", f"{CONFIG}.age"}
    for name, content in contents[plain].items():
        assert pyrage.decrypt(contents[sealed][f"{name}.age"], [identity]) == content
    Command(live, ALICE).ok("checkpoint", "download", sealed, "--output", str(tmp_path))
    (file,) = tmp_path.rglob(f"{WEIGHTS}.age")
    assert file.read_bytes() == contents[sealed][f"{WEIGHTS}.age"]
    with pytest.raises(tinker.BadRequestError, match="for download only"):
        alice.create_sampling_client(model_path=plain).result(SECONDS)


def test_a_training_checkpoint_goes_and_comes_back_with_its_optimizer(
    alice: mint.ServiceClient, bob: mint.ServiceClient, tmp_path: Path
) -> None:
    run = run_of(alice)
    train(run, 0, 2)
    path = run.save_state("gone").result(SECONDS).path
    folder = mintx.download_checkpoint(path, tmp_path / "gone").result(SECONDS)
    assert {file.name for file in folder.iterdir()} == {WEIGHTS, CONFIG, OPTIMIZER, "manifest.json"}
    undisturbed = train(run, 2, 2)
    back = mintx.upload_checkpoint(folder, name="back", api_key=BOB).result(SECONDS)
    assert back.endswith("/weights/back")
    again = bob.create_training_client_from_state_with_optimizer(back).result(SECONDS)
    assert train(again, 2, 2) == undisturbed


def test_an_adapter_of_pefts_trains_on_as_with_peft(alice: mint.ServiceClient, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base(), config)
    with torch.no_grad():  # B is zero, and would hide A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "made")
    path = mintx.upload_checkpoint(tmp_path / "made", base_model="mint/tiny", ttl_seconds=3600).result(SECONDS)
    assert path.endswith("/sampler_weights/uploaded")
    run = alice.create_training_client_from_state(path).result(SECONDS)
    tokens = tokens_of(5)
    before = logprobs(model, tokens)
    torch.testing.assert_close(forward(run, tokens), before.detach(), rtol=0, atol=1e-4)
    with torch.no_grad():
        assert (before - logprobs(base(), tokens)).abs().max() > 0.05, "the adapter says nothing"

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
    for seed in (1, 2):
        data = batch(seed)
        backward(run, data)
        step(run, RATE)
        loss = sum(-logprobs(model, [*d.model_input.to_ints(), _last(d)]).sum() for d in data)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    after = logprobs(model, tokens).detach()
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(forward(run, tokens), after, rtol=0, atol=1e-3)

    # only what peft had adapted has changed
    saved = run.save_weights_for_sampler("after").result(SECONDS).path
    folder = mintx.download_checkpoint(saved, tmp_path / "after").result(SECONDS)
    touched = {name for name, tensor in load_file(folder / WEIGHTS).items() if tensor.any()}
    assert touched == set(load_file(tmp_path / "made" / WEIGHTS))
    adapted = peft.PeftModel.from_pretrained(base(), folder)
    with torch.no_grad():
        torch.testing.assert_close(logprobs(adapted, tokens), after, rtol=0, atol=1e-3)
    client = alice.create_sampling_client(model_path=path).result(SECONDS)
    computed = client.compute_logprobs(types.ModelInput.from_ints(tokens)).result(SECONDS)
    torch.testing.assert_close(torch.tensor(computed[1:]), before.detach(), rtol=0, atol=1e-4)


def _last(datum: types.Datum) -> int:
    return int(datum.loss_fn_inputs["target_tokens"].to_numpy()[-1])


def test_refusals_are_the_sdks(alice: mint.ServiceClient, tmp_path: Path) -> None:
    run = run_of(alice)
    path = run.save_state("mine").result(SECONDS).path
    for wrong, key, error in ((f"{path}-not", ALICE, tinker.NotFoundError), (path, BOB, tinker.PermissionDeniedError)):
        with pytest.raises(error):
            mintx.download_checkpoint(wrong, tmp_path / "x", api_key=key).result(SECONDS)
    (tmp_path / "bad").write_bytes(b"no archive")
    with pytest.raises(tinker.BadRequestError, match="is no tar archive"):
        mintx.upload_checkpoint(tmp_path / "bad").result(SECONDS)
    with pytest.raises(FileNotFoundError):
        mintx.upload_checkpoint(tmp_path).result(SECONDS)
    with pytest.raises(FileExistsError):
        mintx.download_checkpoint(path, tmp_path).result(SECONDS)
    with pytest.raises(ConnectionError):
        mintx.download_checkpoint(path, tmp_path / "x", base_url="http://127.0.0.1:1").result(SECONDS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad"]
    made = alice.create_rest_client()
    assert made.get_weights_info_by_tinker_path(path).result(SECONDS).lora_rank == 4


def test_awaited_with_an_access_token(alice: mint.ServiceClient, live: LiveServer, tmp_path: Path) -> None:
    path = run_of(alice).save_state("shared").result(SECONDS).path
    run, segment, name = path.removeprefix("tinker://").split("/")
    made = live.post(f"training_runs/{run}/checkpoints/{segment}/{name}/access_tokens", {}).json()
    token = made["weights_access_token"]

    async def scene() -> Path:
        return await mintx.download_checkpoint(path, tmp_path / "got", weights_access_token=token, api_key=BOB)

    assert (asyncio.run(scene()) / OPTIMIZER).exists()


def test_the_sdk_sends_access_tokens(alice: mint.ServiceClient, bob: mint.ServiceClient, live: LiveServer) -> None:
    run = run_of(alice)
    path = run.save_state("lent").result(SECONDS).path
    made = live.post(f"training_runs/{run.model_id}/checkpoints/weights/lent/access_tokens", {}).json()
    token = made["weights_access_token"]
    mine = bob.create_training_client_from_state_with_optimizer(path, weights_access_token=token).result(SECONDS)
    mine.load_state(path, weights_access_token=token).result(SECONDS)
    copy = bob.create_rest_client().copy_weights(path, "lent", weights_access_token=token).result(SECONDS)
    assert bob.create_rest_client().get_weights_info_by_tinker_path(copy).result(SECONDS).lora_rank == 4
    with pytest.raises(tinker.PermissionDeniedError, match="weights_access_token"):
        bob.create_rest_client().copy_weights(path, "lent", weights_access_token="tml-other").result(SECONDS)


def test_the_commands(alice: mint.ServiceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def mint_checkpoints(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["checkpoints", *arguments])
        assert done.exit_code == code, (done.output, done.exception)
        return (done.stdout if code == 0 else done.stderr).strip()

    path = run_of(alice).save_state("here").result(SECONDS).path
    assert mint_checkpoints("download", path) == "here"
    told = json.loads(mint_checkpoints("download", path, "there", "--json"))
    assert told == {
        "path": path,
        "folder": "there",
        "size_bytes": sum(f.stat().st_size for f in Path("there").iterdir()),
    }
    back = mint_checkpoints("upload", "here", "--name", "back")
    assert back.endswith("/weights/back")
    with tarfile.open("packed.tgz", "w:gz") as archive:
        archive.add("there", "there")
    assert json.loads(mint_checkpoints("upload", "packed.tgz", "--json"))["checkpoint_id"] == "weights/uploaded"
    assert "is there already" in mint_checkpoints("download", path, code=1)
    assert "is no checkpoint" in mint_checkpoints("download", "here", "new", code=1)
    assert "does not exist" in mint_checkpoints("download", f"{path}-not", "new", code=1)
    assert "adapter_config.json" in mint_checkpoints("upload", ".", code=1)


def test_a_bar_on_a_terminal_alone(
    alice: mint.ServiceClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_of(alice).save_state("seen").result(SECONDS).path
    mintx.download_checkpoint(path, tmp_path / "quiet").result(SECONDS)
    assert capsys.readouterr() == ("", "")
    mintx.download_checkpoint(path, tmp_path / "shown", progress=True).result(SECONDS)
    shown = capsys.readouterr()
    assert "download shown" in shown.err
    assert shown.out == ""
