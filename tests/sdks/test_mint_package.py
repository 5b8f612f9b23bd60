"""The `mint` package with the versions of the SDK at both ends of its range, against one server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mint.cli.private_server import PrivateServer, private_server
from mint.client.patches import OLDEST_SDK, TESTED_SDK

from .environments import environment, outside

SOURCES = Path(__file__).parents[2] / "src"

PROGRAM = """
import mint, mint.mint as mintx
import tinker

assert tinker.__version__ == mint.tinker.__version__
assert all(getattr(mint, name) is getattr(tinker, name) for name in tinker.__all__ if name != "__version__")
service = tinker.ServiceClient()
run = service.create_lora_training_client("mint/tiny", rank=4)
run = run.result(60) if hasattr(run, "result") else run
tokens = run.get_tokenizer().encode("the cat sat on the mat")
tensor = mint.types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])
datum = mint.types.Datum(model_input=mint.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tensor})
first = mintx.train_step(run, [datum], "cross_entropy", mint.AdamParams(learning_rate=1e-3)).result(60)
second = mintx.train_step(run, [datum], "cross_entropy", mint.AdamParams(learning_rate=1e-3)).result(60)
assert second.metrics["loss:sum"] < first.metrics["loss:sum"]
pair = mintx.ReverseKLDatum(tokens[:-1], tokens[:-1], tokens[1:])
assert mintx.forward_backward_reverse_kl(run, [pair]).result(60).losses[0] > 0
corrected = mintx.create_lora_training_client(
    service, "mint/tiny", rank=4, rollout_correction_config=mintx.RolloutCorrectionConfig(rollout_is="token")
).result(60)
assert corrected.model_id.endswith(":train:1")
sampler = run.save_weights_and_get_sampling_client()
sampler = sampler.result(60) if hasattr(sampler, "result") else sampler
answer = sampler.sample(mint.ModelInput.from_ints(tokens), 1, mint.SamplingParams(max_tokens=3)).result(60)
print(sampler.get_tokenizer().decode(answer.sequences[0].tokens) is not None, flush=True)
import os; os._exit(0)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_server() as running:
        yield running


def run(version: str, server: PrivateServer, home: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose user is on another machine: nothing of this one's files is where they would look."""
    variables = {"MINT_BASE_URL": server.base_url, "MINT_API_KEY": server.api_key, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [environment(f"tinker=={version}"), "-W", "error::RuntimeWarning", "-c", program],
        env=outside(**variables, HOME=str(home), PYTHONPATH=str(SOURCES), TINKER_TELEMETRY="0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("version", [OLDEST_SDK, pytest.param(TESTED_SDK, marks=pytest.mark.slow)])
def test_both_ends_of_the_range(version: str, server: PrivateServer, tmp_path: Path) -> None:
    done = run(version, server, tmp_path, PROGRAM)
    assert done.stdout == "True\n", done.stderr
    assert "could not be prepared" not in done.stderr


def test_an_older_sdk_is_refused_by_name(server: PrivateServer, tmp_path: Path) -> None:
    done = run("0.22.0", server, tmp_path, "import mint; mint.ServiceClient")
    assert done.returncode == 1
    assert "needs tinker 0.30.4 or later, and tinker 0.22.0 is installed" in done.stderr
