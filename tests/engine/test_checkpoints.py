"""A run's files: what is read back is what was written, and a damaged folder changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mint.engine.core import (
    AdamParams,
    Command,
    CreateRun,
    ExportRevision,
    ForwardBackward,
    LoadState,
    OptimStep,
    Passed,
    RestoreRun,
    Revision,
    RunReady,
    Sample,
    Sampled,
    SamplingParams,
    Saved,
    SaveState,
    Stepped,
)
from mint.engine.optimizer import TrainableAdapter
from mint.errors import BadRequestError, MintError, NotFoundError
from mint.models.lora import LinearSite
from tests.engine.conftest import EngineDriver, make_datum, make_driver, shape
from tests.engine.support import (
    assert_same_pass,
    gradients,
    policy_pass,
    trainable,
    trained_run,
    weights,
)
from tests.engine.test_against_peft import reference_logprobs

ADAM = AdamParams(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=1.0)


def steps(run: str, first: int, last: int) -> list[Command]:
    """Steps number first … last − 1 of a training loop, each with its own data."""
    commands: list[Command] = []
    for number in range(first, last):
        rng = np.random.default_rng(number)
        commands += [policy_pass(run, [7, 12], "cross_entropy", rng), OptimStep(run, ADAM)]
    return commands


def save(driver: EngineDriver, run: str, folder: Path) -> Path:
    folder.mkdir()
    driver.one(SaveState(run, folder))
    return folder


def metrics_of(answers: list[object]) -> list[dict[str, float]]:
    assert not any(isinstance(answer, MintError) for answer in answers), answers
    return [answer.metrics for answer in answers]


@pytest.mark.parametrize("where", ["in place", "in a new run of another engine"])
def test_training_goes_on_bit_for_bit(qwen_dir: Path, tmp_path: Path, where: str) -> None:
    driver = make_driver(qwen_dir)
    driver.one(CreateRun("run", shape()))
    driver.together(steps("run", 0, 3))
    folder = save(driver, "run", tmp_path / "state")
    expected = metrics_of(driver.together(steps("run", 3, 6)))
    final = weights(driver, "run")

    if where == "in place":
        resumed, run = driver, "run"
        driver.one(LoadState("run", folder, with_optimizer=True))
    else:
        resumed, run = make_driver(qwen_dir), "other"
        resumed.one(RestoreRun("other", folder, with_optimizer=True))
    answers = resumed.together(steps(run, 3, 6))

    assert metrics_of(answers) == expected
    assert torch.equal(weights(resumed, run), final)
    assert answers[-1].metrics["step"] == 6


def test_a_run_saved_before_its_first_step_starts_from_the_same_weights(driver: EngineDriver, tmp_path: Path) -> None:
    driver.one(CreateRun("run", shape()))
    folder = save(driver, "run", tmp_path / "state")
    expected = metrics_of(driver.together(steps("run", 0, 2)))
    driver.one(RestoreRun("again", folder, with_optimizer=True))
    assert metrics_of(driver.together(steps("again", 0, 2))) == expected


@pytest.mark.parametrize("command", [LoadState, RestoreRun])
def test_without_optimizer_the_moments_are_fresh(
    driver: EngineDriver, tmp_path: Path, command: type[LoadState | RestoreRun]
) -> None:
    trained_run(driver, "run", shape(), steps=3)
    folder = save(driver, "run", tmp_path / "state")
    saved = weights(driver, "run")
    driver.together(steps("run", 0, 1))

    driver.one(command("run", folder, with_optimizer=False))

    loaded = trainable(driver, "run")
    assert torch.equal(loaded.adapter.flat, saved)
    assert loaded.num_steps == 0
    expected = TrainableAdapter(loaded.adapter.layout, saved.clone())
    gradient = torch.randn(saved.shape, generator=torch.Generator().manual_seed(0))
    loaded.gradients.copy_(gradient)
    expected.gradients.copy_(gradient)
    assert loaded.step(ADAM) == expected.step(ADAM)
    assert torch.equal(loaded.adapter.flat, expected.adapter.flat)


def test_loading_drops_gradients_that_were_not_applied(driver: EngineDriver, tmp_path: Path) -> None:
    trained_run(driver, "run", shape())
    folder = save(driver, "run", tmp_path / "state")
    driver.one(policy_pass("run", [9], "cross_entropy", np.random.default_rng(0)))
    assert gradients(driver, "run").any()
    driver.one(LoadState("run", folder, with_optimizer=True))
    assert not gradients(driver, "run").any()


def test_restoring_tells_the_shape(driver: EngineDriver, tmp_path: Path) -> None:
    trained_run(driver, "run", shape(6, train_mlp=False))
    folder = save(driver, "run", tmp_path / "state")
    ready = driver.one(RestoreRun("other", folder, with_optimizer=True))
    assert isinstance(ready, RunReady)
    assert replace(ready.lora, seed=6) == shape(6, train_mlp=False)


def test_loading_into_a_run_that_is_not_there_is_refused(driver: EngineDriver, tmp_path: Path) -> None:
    trained_run(driver, "run", shape())
    folder = save(driver, "run", tmp_path / "state")
    (answer,) = driver.together([LoadState("stranger", folder, with_optimizer=False)])
    assert isinstance(answer, NotFoundError)


@pytest.mark.parametrize("command", [SaveState, ExportRevision])
def test_size_is_that_of_the_files(driver: EngineDriver, tmp_path: Path, command: Callable[..., Command]) -> None:
    trained_run(driver, "run", shape())
    arguments = ("key",) if command is ExportRevision else ()
    saved = driver.one(command("run", tmp_path, *arguments))
    assert saved == Saved(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert saved.size_bytes > 4 * weights(driver, "run").numel()


def test_a_save_that_the_disk_refuses_fails_alone(driver: EngineDriver, tmp_path: Path) -> None:
    trained_run(driver, "run", shape())
    (tmp_path / "file").write_text("no folder can be made under a file")
    missing = tmp_path / "file" / "folder"
    refused = driver.together([SaveState("run", missing), ExportRevision("run", missing, "key"), *steps("run", 0, 1)])
    assert isinstance(refused[0], MintError)
    assert isinstance(refused[1], MintError)
    assert isinstance(refused[2], Passed)
    assert isinstance(refused[3], Stepped)


# --- PEFT ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [SaveState, ExportRevision])
@pytest.mark.parametrize("flags", [{}, {"train_unembed": False}, {"train_attn": False, "train_mlp": False}])
def test_peft_reads_our_folders(
    driver: EngineDriver,
    qwen_dir: Path,
    tmp_path: Path,
    flags: dict[str, bool],
    command: Callable[..., Command],
) -> None:
    trained_run(driver, "run", shape(**flags))
    driver.one(command("run", tmp_path, *(("key",) if command is ExportRevision else ())))
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path)
    datum = make_datum(np.random.default_rng(1), 25)
    ours = driver.one(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True))
    with torch.no_grad():
        expected = reference_logprobs(model, datum).numpy()
        with model.disable_adapter():
            base_logprobs = reference_logprobs(model, datum).numpy()
    np.testing.assert_allclose(ours.logprobs[0], expected, rtol=0, atol=1e-5)
    assert np.abs(expected - base_logprobs).max() > 0.1, "the adapter changes nothing: nothing was compared"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_read_pefts_folders(driver: EngineDriver, qwen_dir: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=5, lora_alpha=7, target_modules=modules))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.normal_(std=0.1).to(dtype).float()
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)

    ready = driver.one(RestoreRun("run", tmp_path, with_optimizer=False))

    assert (ready.lora.rank, ready.lora.alpha) == (5, 7.0)
    assert (ready.lora.train_attn, ready.lora.train_mlp, ready.lora.train_unembed) == (True, False, False)
    datum = make_datum(np.random.default_rng(1), 25)
    ours = driver.one(ForwardBackward("run", (datum,), "cross_entropy", forward_only=True))
    with torch.no_grad():
        expected = reference_logprobs(model.eval(), datum).numpy()
    np.testing.assert_allclose(ours.logprobs[0], expected, rtol=0, atol=1e-5)


# --- damage -------------------------------------------------------------------------------------------------

WEIGHTS, CONFIG, OPTIMIZER = "adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def another_base_model(folder: Path) -> None:
    sites = (LinearSite(0, "model.layers.0.self_attn.q_proj", "attn", 6, 10, 0),)
    for path in folder.iterdir():
        path.unlink()
    TrainableAdapter.create(shape(8), sites, torch.device("cpu")).saved().write(folder, "another")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda d: (d / WEIGHTS).unlink(),
    "no config": lambda d: (d / CONFIG).unlink(),
    "truncated weights": lambda d: truncate(d / WEIGHTS),
    "empty weights": lambda d: (d / WEIGHTS).write_bytes(b""),
    "config is no JSON": lambda d: (d / CONFIG).write_text("{"),
    "config is not UTF-8": lambda d: (d / CONFIG).write_bytes(b"\xff\xfe{}"),
    "config is a list": lambda d: (d / CONFIG).write_text("[]"),
    "config without rank": lambda d: (d / CONFIG).write_text('{"lora_alpha": 32}'),
    "rank is no number": lambda d: edit_config(d, r=None),
    "rank 0": lambda d: edit_config(d, r=0),
    "another rank": lambda d: edit_config(d, r=4),
    "a rank that fits no memory": lambda d: edit_config(d, r=1 << 40),
    "rslora": lambda d: edit_config(d, use_rslora=True),
    "alpha_pattern": lambda d: edit_config(d, alpha_pattern={"q_proj": 1}),
    "a tensor is missing": lambda d: edit_tensors(d / WEIGHTS, lambda t: t.pop(max(t))),
    "a tensor too many": lambda d: edit_tensors(d / WEIGHTS, lambda t: t.update(x=torch.zeros(1))),
    "no tensors": lambda d: edit_tensors(d / WEIGHTS, lambda t: t.clear()),
    "another base model": another_base_model,
}
OPTIMIZER_DAMAGE: dict[str, Callable[[Path], object]] = {
    "no optimizer": lambda d: (d / OPTIMIZER).unlink(),
    "truncated optimizer": lambda d: truncate(d / OPTIMIZER),
    "moments in another order": lambda d: edit_tensors(d / OPTIMIZER, lambda t: t.update(layout=torch.tensor(1))),
    "moments in an order not told": lambda d: edit_tensors(d / OPTIMIZER, lambda t: t.pop("layout")),
    "optimizer without step": lambda d: edit_tensors(d / OPTIMIZER, lambda t: t.pop("step")),
    "optimizer without moment": lambda d: edit_tensors(d / OPTIMIZER, lambda t: t.pop("exp_avg_sq")),
    "moments of another size": lambda d: edit_tensors(
        d / OPTIMIZER, lambda t: t.update(exp_avg=t["exp_avg"][:-1].clone())
    ),
    "moments of another type": lambda d: edit_tensors(d / OPTIMIZER, lambda t: t.update(exp_avg=t["exp_avg"].double())),
    "step is no number": lambda d: edit_tensors(d / OPTIMIZER, lambda t: t.update(step=torch.zeros(2))),
}


@pytest.fixture(scope="module")
def saved(qwen_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineDriver, Path]:
    driver = make_driver(qwen_dir)
    trained_run(driver, "run", shape())
    return driver, save(driver, "run", tmp_path_factory.mktemp("saved") / "state")


def copy_folder(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("damage", {**DAMAGE, **OPTIMIZER_DAMAGE}.values(), ids={**DAMAGE, **OPTIMIZER_DAMAGE})
def test_a_damaged_folder_is_refused_and_the_run_stays_as_it_was(
    saved: tuple[EngineDriver, Path], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    driver, folder = saved
    damaged = copy_folder(folder, tmp_path)
    damage(damaged)
    driver.one(policy_pass("run", [5], "cross_entropy", np.random.default_rng(0)))
    run, before, pending = trainable(driver, "run"), weights(driver, "run"), gradients(driver, "run")

    in_place, new = driver.together(
        [LoadState("run", damaged, with_optimizer=True), RestoreRun("new", damaged, with_optimizer=True)]
    )

    assert isinstance(in_place, BadRequestError), in_place
    assert isinstance(new, BadRequestError), new
    assert trainable(driver, "run") is run
    assert torch.equal(weights(driver, "run"), before)
    assert torch.equal(gradients(driver, "run"), pending)
    (unknown,) = driver.together([OptimStep("new", ADAM)])
    assert isinstance(unknown, NotFoundError)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_revision_refuses_the_sample_alone(
    saved: tuple[EngineDriver, Path], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    driver, folder = saved
    damaged = copy_folder(folder, tmp_path)
    damage(damaged)
    prompt, params = np.arange(5, dtype=np.int32), SamplingParams(max_tokens=3, seed=0)
    refused, served = driver.together(
        [Sample(Revision(str(damaged), damaged), prompt, 1, params), Sample(None, prompt, 1, params)]
    )
    assert isinstance(refused, BadRequestError), refused
    assert isinstance(served, Sampled)


@pytest.mark.parametrize("damage", OPTIMIZER_DAMAGE.values(), ids=OPTIMIZER_DAMAGE)
def test_weights_alone_load_whatever_became_of_the_optimizer(
    saved: tuple[EngineDriver, Path], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    driver, folder = saved
    damaged = copy_folder(folder, tmp_path)
    damage(damaged)
    driver.one(RestoreRun("weights", damaged, with_optimizer=False))
    command = policy_pass("run", [6], "cross_entropy", np.random.default_rng(0), forward_only=True)
    ours = driver.one(replace(command, run_id="weights"))
    assert_same_pass(ours, driver.one(command), 1e-6)
