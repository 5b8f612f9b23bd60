"""A program of a MinT user with the published client `mindlab-toolkit`, which has a `mint` package of its own."""

from __future__ import annotations

import json
import os
import random

import mint
import mint.mint as mintx
from mint import types

MODEL, SECONDS = "mint/tiny", 60


def tokens_of(seed: int) -> list[int]:
    return [random.Random(place + seed).randrange(5, 500) for place in range(0, 1200, 100)]


def tensor(values: list[int] | list[float], dtype: str) -> types.TensorData:
    return types.TensorData(data=values, dtype=dtype, shape=[len(values)])


def datum(tokens: list[int], **inputs: types.TensorData) -> types.Datum:
    targets = tensor(tokens[1:], "int64")
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": targets, **inputs}
    )


def train(run: mint.TrainingClient) -> list[float]:
    losses = []
    for _ in range(3):
        data = [datum(tokens_of(seed), weights=tensor([1.0] * 11, "float32")) for seed in range(3)]
        passed = run.forward_backward(data, "cross_entropy").result(SECONDS)
        losses.append(passed.metrics["loss:sum"])
        run.optim_step(types.AdamParams(learning_rate=2e-3)).result(SECONDS)
    return losses


def distil(run: mint.TrainingClient, reference: str) -> float:
    """MinT's own request, as the client sends it: without a number, and read as its types say."""
    tokens = tokens_of(5)
    pair = mintx.ReverseKLDatum(
        student_input=types.ModelInput.from_ints(tokens[:-1]),
        reference_input=types.ModelInput.from_ints(tokens[:-1]),
        target_tokens=tensor(tokens[1:], "int64"),
        weights=tensor([1.0] * 11, "float32"),
    )
    losses = []
    for _ in range(2):
        answer = mintx.forward_backward_reverse_kl(run, reference_model_path=reference, data=[pair])
        losses.append(float(answer.outputs[0].loss.data[0]))
        run.optim_step(types.AdamParams(learning_rate=2e-3)).result(SECONDS)
    assert losses[1] < losses[0], losses
    return losses[0]


service = mint.ServiceClient()
run = service.create_lora_training_client(base_model=MODEL, rank=4, seed=1)
start = run.save_state("start").result(SECONDS).path
losses = train(run)
sampler = run.save_weights_and_get_sampling_client("any")
prompt = types.ModelInput.from_ints([5, 6, 7])
sampled = sampler.sample(prompt, 2, types.SamplingParams(max_tokens=3)).result(SECONDS)
legacy = run.save_weights_for_sampler("kept").result(SECONDS).path.replace("tinker://", "mint://")
report = {"version": mint.__version__, "tinker": mint.__tinker_version__, "losses": losses}
report["sampled"] = [len(each.logprobs) for each in sampled.sequences]
report["reverse_kl"] = distil(run, start)
if mint.__version__ == "0.1.0":  # the only one that lets such a path through
    old = legacy.replace("sampler_weights/", "")
    client = service.create_sampling_client(model_path=old)
    report["legacy"] = len(client.compute_logprobs(prompt).result(SECONDS))
if os.environ.get("INTERPOLATES"):
    ends = [run.save_weights_for_sampler(name).result(SECONDS).path for name in ("one", "two")]
    report["interpolated"] = mintx.interpolate_checkpoints(service, source_paths=ends, coefficients=[0.5, 0.5]).path
print(json.dumps(report), flush=True)
os._exit(0)
