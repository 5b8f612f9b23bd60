"""Robot policies by their examples: a LoRA learns in closed loop over HTTP what its base cannot."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mint
import mint.mint as mintx
from mint.cli.private_server import private_server
from mint.tiny_vla import NAME, model_path
from mint.tiny_vla.reaching import Images, Reaching

EXAMPLES = Path(__file__).parent.parent / "examples"
EPISODES, STEPS = 100, 100


class Dark(Reaching):
    """The arena with the lights off."""

    def images(self) -> dict[str, Images]:
        return {camera: np.zeros_like(images) for camera, images in super().images().items()}


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("vla_reach", EXAMPLES / "vla_reach.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vla_reach"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def service() -> Iterator[mint.ServiceClient]:
    with (
        private_server([NAME]) as server,
        mint.ServiceClient(base_url=server.base_url, api_key=server.api_key) as client,
    ):
        yield client


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_lora_learns_what_its_base_cannot(seed: int, example: Any, service: mint.ServiceClient) -> None:
    run = mintx.create_openpi_training_client(service, base_model=NAME, rank=16)
    robot = example.Robot(service, run, mintx.openpi.OpenPIProcessor.load(model_path()))

    def success(arena: type[Reaching], trained: bool) -> float:
        with robot.policy(trained) as policy:
            return float(robot.play(policy, arena.start(seed, EPISODES, mirrored=True)).reached.mean())

    base = success(Reaching, trained=False)
    for step in range(STEPS):
        robot.clone_step(1000 * (seed + 1) + step)
    tuned = success(Reaching, trained=True)
    assert base <= 0.35
    assert tuned >= max(0.85, base + 0.3)
    assert success(Dark, trained=True) <= 0.35


def test_the_example_over_plain_http() -> None:
    command = [sys.executable, "-m", "mint.cli", "run", "--model", f"{NAME}-256", str(EXAMPLES / "vla_http.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 2
    assert "without its run, it says [" in done.stdout
