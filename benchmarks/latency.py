"""What a small operation costs from end to end, against what its arithmetic costs alone.

    python -m benchmarks.latency [--model mint/tiny] [--rounds 60] [--out FILE]

Starts a server, then in turn measures operations through the official SDK and the same arithmetic in this process with
plain transformers and PEFT, so that both see the same machine. Also reports the time from start to ready, and the
memory of server and worker. Prints a table of medians and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mint.cli.private_server import PrivateServer, private_server
from mint.tiny import NAME, model_path

TOKENS = 32
RANK = 8
BLOCK = 10
"""Rounds of one operation before the next one's turn: a user's program does not compute the same beside it."""
console = Console(stderr=True)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def resident_bytes(process: psutil.Process) -> dict[str, int]:
    """Unique memory of the server and of its workers: what would be free if they were not there."""
    workers = process.children(recursive=True)
    return {
        "server": process.memory_full_info().uss,
        "workers": sum(worker.memory_full_info().uss for worker in workers),
    }


def service_operations(server: PrivateServer, model: str) -> dict[str, Callable[[], object]]:
    """The operations through HTTP, as a user's program does them."""
    import mint as tinker
    from mint import types

    service = tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key)
    run = service.create_lora_training_client(base_model=model, rank=RANK).result()
    sampler = run.save_weights_and_get_sampling_client().result()
    tokens = list(range(5, 5 + TOKENS + 1))
    prompt = types.ModelInput.from_ints(tokens[:16])
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[TOKENS])},
    )
    adam = types.AdamParams(learning_rate=1e-4)
    one_token = types.SamplingParams(max_tokens=1)
    return {
        "optim_step": lambda: run.optim_step(adam).result(),
        "forward_backward, 1 datum": lambda: run.forward_backward([datum], "cross_entropy").result(),
        "sample, 1 token": lambda: sampler.sample(prompt, num_samples=1, sampling_params=one_token).result(),
        "save for sampler": lambda: run.save_weights_and_get_sampling_client().result(),
    }


def plain_operations(folder: str) -> dict[str, Callable[[], object]]:
    """The same arithmetic in this process: transformers, PEFT, torch's AdamW."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]
    model: Any = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=32, target_modules=[*names, "lm_head"]))
    tokens = torch.arange(5, 5 + TOKENS + 1)[None]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def forward_backward() -> None:
        logits = model(input_ids=tokens[:, :-1]).logits[0]
        torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").backward()  # type: ignore[no-untyped-call]

    forward_backward()
    return {"optim_step": optimizer.step, "forward_backward, 1 datum": forward_backward}


def measure(model: str, rounds: int) -> dict[str, Any]:
    started = time.perf_counter()
    with private_server([] if model == NAME else [model]) as server:
        ready = time.perf_counter() - started
        process = psutil.Process(server.process.pid)
        at_rest = resident_bytes(process)
        name = model.partition("=")[0]
        service = service_operations(server, name)
        plain = plain_operations(str(model_path()) if model == NAME else model.rpartition("=")[2])
        times: dict[str, list[float]] = {}
        for work in (*service.values(), *plain.values()):
            for _ in range(5):
                work()
        for _ in track(range(rounds // BLOCK), "measuring", console=console):
            for side, suffix in ((service, ""), (plain, " (plain)")):
                for label, work in side.items():
                    times.setdefault(f"{label}{suffix}", []).extend(timed(work) for _ in range(BLOCK))
        return {
            "model": name,
            "ready_s": round(ready, 2),
            "memory_mb": {
                "at rest": {part: value // 2**20 for part, value in at_rest.items()},
                "after": {part: value // 2**20 for part, value in resident_bytes(process).items()},
                "weights": weights_bytes(model) // 2**20,
            },
            "p50_ms": {label: round(median(values), 2) for label, values in times.items()},
            "p90_ms": {label: round(quantiles(values, n=10)[8], 2) for label, values in times.items()},
        }


def weights_bytes(model: str) -> int:
    """Of the base model in float32."""
    folder = model_path() if model == NAME else Path(model.rpartition("=")[2])
    config = json.loads((folder / "config.json").read_text())
    width = 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) * 4 // width


AIMS = {"optim_step": 10, "forward_backward, 1 datum": 25}
"""Milliseconds at the median, on 2 cores, for mint/tiny."""


def show(result: dict[str, Any]) -> None:
    table = Table(
        "operation", "p50 ms", "aim", "p90 ms", "plain p50 ms", "ratio", title=f"{result['model']}, {TOKENS} tokens"
    )
    for label, value in result["p50_ms"].items():
        if not label.endswith("(plain)"):
            plain = result["p50_ms"].get(f"{label} (plain)")
            ratio = f"{value / plain:.1f}" if plain else ""
            aim = f"≤ {AIMS[label]}" if label in AIMS else ""
            table.add_row(label, str(value), aim, str(result["p90_ms"][label]), str(plain or ""), ratio)
    console.print(table)
    memory = result["memory_mb"]
    after = sum(memory["after"].values())
    console.print(
        f"ready {result['ready_s']} s after start (aim ≤ 8); memory {after} MB (server {memory['after']['server']}, "
        f"worker {memory['after']['workers']}), of which weights {memory['weights']} (aim ≤ 1200 above them)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=NAME, help="as for `mint serve`; a local one as NAME=PATH")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    result = measure(arguments.model, arguments.rounds)
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
