"""tinker-cookbook's own programs, as published: from the shell, with a URL, a key, a model and a tokenizer.

Settings are small; what a program is for is checked in the metrics that it writes itself.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from .conftest import Programs, metrics, values
from .hub import MODEL

RECIPES = "tinker_cookbook.recipes"


def test_minimal_supervised_loop(programs: Programs) -> None:
    """The short one: it runs with the fast tests."""
    log = programs.log("sl_loop")
    settings = ["batch_size=16", "max_steps=5", "learning_rate=2e-3", "lora_rank=8", "save_every=3"]
    programs.run(f"{RECIPES}.sl_loop", f"model_name={MODEL}", f"log_path={log}", *settings)
    losses = values(log, "train_mean_nll")
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2
    saved = checkpoints(log)
    assert [row["name"] for row in saved] == ["000003", "final"]
    assert saved[-1]["sampler_path"].startswith("tinker://")


def checkpoints(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (log / "checkpoints.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_supervised_trainer_with_evaluation(programs: Programs) -> None:
    log = programs.log("sl_basic")
    settings = ["learning_rate=2e-3", "eval_every=2", "lora_rank=8"]  # three batches of its 128 in an epoch
    programs.run(f"{RECIPES}.sl_basic", f"model_name={MODEL}", f"log_path={log}", "num_epochs=2", *settings)
    losses = values(log, "train_mean_nll")
    assert losses[-1] < losses[0] / 2
    held_back = values(log, "test/nll")
    assert held_back[-1] < held_back[0]


@pytest.mark.slow
def test_a_killed_trainer_goes_on_from_its_checkpoint(programs: Programs) -> None:
    log = programs.log("resume")
    settings = [f"model_name={MODEL}", f"log_path={log}", "batch_size=64", "num_epochs=3", "learning_rate=2e-3"]
    settings += ["lora_rank=8", "save_every=4", "eval_every=0", "lr_schedule=constant"]
    settings += ["behavior_if_log_dir_exists=resume"]
    first = programs.start("-m", f"{RECIPES}.chat_sl.train", *settings)
    deadline = time.monotonic() + 200
    while not (log / "checkpoints.jsonl").exists():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = values(log, "train_mean_nll")
    programs.run(f"{RECIPES}.chat_sl.train", *settings, name=f"{RECIPES}.chat_sl.train, after a kill")
    after = values(log, "train_mean_nll")[len(before) :]
    rows = metrics(log)[len(before) :]
    assert rows[0]["progress"] == pytest.approx(5 / 18)  # the checkpoint was written after four of eighteen steps
    assert rows[-1]["progress"] == 1
    assert after[0] < before[0] / 2  # with what had been learned


@pytest.mark.slow
def test_rl_trainer_on_what_the_model_knows(programs: Programs) -> None:
    log = programs.log("math_rl")
    settings = ["env=arithmetic", "group_size=4", "groups_per_batch=16", "learning_rate=1e-3", "max_tokens=8"]
    settings += ["loss_fn=importance_sampling", "max_steps=5", "lora_rank=8", "eval_every=0", "save_every=3"]
    programs.run(f"{RECIPES}.math_rl.train", f"model_name={MODEL}", f"log_path={log}", *settings)
    assert min(values(log, "env/all/reward/total")) > 0.6  # it can add, and does not unlearn it
    assert max(map(abs, values(log, "optim/kl_sample_train_v1"))) < 1e-4  # sampler and trainer agree


@pytest.mark.slow
@pytest.mark.parametrize("loss_fn", ["importance_sampling", "gspo"])
def test_minimal_rl_loop(programs: Programs, loss_fn: str) -> None:
    log = programs.log(f"rl_loop_{loss_fn}")
    settings = ["batch_size=4", "group_size=4", "max_tokens=24", "max_steps=2", "lora_rank=8", f"loss_fn={loss_fn}"]
    name = f"{RECIPES}.rl_loop"
    programs.run(name, f"model_name={MODEL}", f"log_path={log}", *settings, name=f"{name} {loss_fn}")
    assert len(values(log, "reward/total")) == 2


@pytest.mark.slow
def test_rl_trainer_in_its_other_ways(programs: Programs) -> None:
    """Sampling ahead of the training, and several optimizer steps for a batch, with another loss."""
    log = programs.log("async_rl")
    settings = ["env=gsm8k", "group_size=2", "groups_per_batch=4", "learning_rate=1e-4", "max_tokens=16"]
    settings += ["loss_fn=ppo", "max_steps=3", "max_steps_off_policy=1", "lora_rank=8", "eval_every=0", "save_every=0"]
    name = f"{RECIPES}.math_rl.train"
    programs.run(name, f"model_name={MODEL}", f"log_path={log}", *settings, name=f"{name}, asynchronous")
    assert len(values(log, "env/all/reward/total")) >= 1


@pytest.mark.slow
def test_dpo_trainer(programs: Programs) -> None:
    log = programs.log("dpo")
    settings = ["dataset=hhh", "renderer_name=qwen3_instruct", "batch_size=16", "learning_rate=1e-3", "max_steps=6"]
    programs.run(f"{RECIPES}.preference.dpo.train", f"model_name={MODEL}", f"log_path={log}", *settings)
    losses = values(log, "dpo_loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # a run begins as its reference
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
def test_distillation_on_policy_from_a_checkpoint(programs: Programs) -> None:
    teacher = programs.log("teacher")
    settings = ["batch_size=24", "max_steps=4", "learning_rate=2e-3", "lora_rank=8", "save_every=0"]
    name = f"{RECIPES}.sl_loop"
    programs.run(name, f"model_name={MODEL}", f"log_path={teacher}", *settings, name=f"{name}, for a teacher")
    path = checkpoints(teacher)[-1]["sampler_path"]

    log = programs.log("on_policy_distillation")
    settings = [f"teacher_model={MODEL}", f"teacher_checkpoint={path}", "group_size=2", "groups_per_batch=12"]
    settings += ["learning_rate=1e-3", "max_tokens=12", "max_steps=30", "lora_rank=8", "eval_every=0", "save_every=0"]
    program = f"{RECIPES}.distillation.on_policy_distillation"
    programs.run(program, f"model_name={MODEL}", f"log_path={log}", *settings)
    divergences = values(log, "teacher_kl")
    # of two dozen samples each, so one by one they go up and down
    assert np.mean(divergences[-4:]) < np.mean(divergences[:4]), divergences


@pytest.mark.slow
def test_distillation_off_policy(programs: Programs) -> None:
    log = programs.log("off_policy")
    settings = ["batch_size=16", "learning_rate=2e-3", "max_steps=5", "lora_rank=8", "renderer_name=qwen3_instruct"]
    settings += ["max_prompts=96", "buffer_size=96", "eval_every=0", "save_every=0"]
    program = f"{RECIPES}.distillation.off_policy_reasoning"
    programs.run(program, f"model_name={MODEL}", f"log_path={log}", *settings)
    losses = values(log, "train_mean_nll")
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_distillation_from_several_teachers(programs: Programs) -> None:
    log = programs.log("multi_teacher")
    settings = [f"deepmath_teacher_model={MODEL}", f"tulu3_teacher_model={MODEL}", "deepmath_groups_per_batch=2"]
    settings += ["tulu3_groups_per_batch=2", "group_size=2", "max_tokens=12", "max_steps=2", "lora_rank=8"]
    settings += ["eval_every=0", "save_every=0"]
    program = f"{RECIPES}.distillation.on_policy_multi_teacher"
    programs.run(program, f"model_name={MODEL}", f"log_path={log}", *settings)
    assert values(log, "teacher_kl")[0] == pytest.approx(0, abs=1e-4)  # the student begins as both of them


@pytest.mark.slow
def test_self_distillation(programs: Programs) -> None:
    log = programs.log("sdft")
    settings = ["groups_per_batch=8", "max_tokens=16", "max_steps=3", "lora_rank=8", "topk=4", "max_context_length=512"]
    settings += ["eval_every=0", "save_every=0", "learning_rate=1e-3"]
    programs.run(f"{RECIPES}.sdft.train", f"model_name={MODEL}", f"log_path={log}", *settings)
    assert len(metrics(log)) >= 3


@pytest.mark.slow
def test_preference_between_samples(programs: Programs) -> None:
    """Shorter answers win; there is no data set in it."""
    log = programs.log("shorter")
    settings = ["renderer_name=qwen3_instruct", "batch_size=4", "group_size=4", "learning_rate=1e-3", "max_tokens=24"]
    programs.run(
        f"{RECIPES}.preference.shorter.train", f"model_name={MODEL}", f"log_path={log}", "max_steps=3", *settings
    )
    assert len(values(log, "env/all/reward/total")) >= 3


@pytest.mark.slow
def test_a_game_of_many_turns(programs: Programs) -> None:
    log = programs.log("guess_number")
    settings = ["renderer_name=qwen3_instruct", "batch_size=2", "group_size=2", "max_tokens=12", "max_steps=2"]
    program = f"{RECIPES}.multiplayer_rl.guess_number.train"
    programs.run(program, f"model_name={MODEL}", f"log_path={log}", "eval_every=0", "save_every=0", *settings)
    assert len(values(log, "env/all/reward/total")) >= 2


@pytest.mark.slow
def test_numerics_of_sampler_and_trainer(programs: Programs) -> None:
    """The cookbook's own measure of how far the sampler is from the trainer: some 1e-3 where all is well."""
    log = programs.log("numerics")
    settings = ["renderer_name=qwen3_instruct", "group_size=2", "groups_per_batch=4", "max_tokens=24", "lora_rank=8"]
    settings += ["max_steps=2", "learning_rate=1e-3", "max_trajectory_tokens=1500", "save_every=0"]
    settings += ["task.num_pages_min=1", "task.num_pages_max=2", "task.page_chars=200"]
    programs.run(f"{RECIPES}.rl_numerics_check.train", f"model_name={MODEL}", f"log_path={log}", *settings)
    assert max(map(abs, values(log, "optim/kl_sample_train_v1"))) < 1e-4
