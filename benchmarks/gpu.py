"""Model FLOP utilisation of forward_backward on a CUDA device.

    python -m benchmarks.gpu [--rounds 10] [--rank 32] [--micro-batch 4096] [--peak-tflops 989] [--out FILE]

A random Qwen3 of 4 billion parameters in bfloat16 is made on the device, without files. Each step is one pass over 16
sequences of 1024 tokens; the utilisation is its useful arithmetic per second (`useful_flops_per_token`, which leaves
attention out) over the device's dense bfloat16 peak. Chowdhery et al., 2022, arXiv 2204.02311, appendix B, define it
for training in full; LoRA needs no gradients of the frozen weights, and none are counted. A large product of torch's is
measured between the steps, for information. Prints a table and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.in_process import InProcess, enter_worker_environment, random_data, useful_flops_per_token
from mint.config import EngineConfig
from mint.engine.core import ForwardBackward

SHAPE: Mapping[str, Any] = {
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}
DATUMS, LENGTH = 16, 1024
AIM = 0.40
PRODUCT = 8192
PEAK_TFLOPS: Mapping[str, float] = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200 NVL": 835,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
}
"""Dense bfloat16, from the makers' data sheets, by a part of the device's name; the first that fits."""
console = Console(stderr=True)


def make_engine(config: Any, device: str, micro_batch: int) -> InProcess:
    """An engine around random weights in bfloat16, which are drawn on the device."""
    import torch
    from transformers import AutoModelForCausalLM

    from mint.engine.constraints import ConstraintCompiler
    from mint.engine.engine import Engine
    from mint.models.attention import ATTENTION_NAME
    from mint.models.causal_lm import CausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.bfloat16, attn_implementation=ATTENTION_NAME
        )
    settings = EngineConfig(max_batch_tokens=micro_batch)
    return InProcess(
        Engine(
            CausalLM(model.eval()),
            "random-qwen3",
            settings,
            [b""] * config.vocab_size,
            ConstraintCompiler(None, config.vocab_size, ()),
            print,
        )
    )


def seconds(work: Callable[[], object]) -> float:
    """Until the device has finished what `work` asked of it."""
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(shape: Mapping[str, Any], device: str, rank: int, micro_batch: int, rounds: int) -> dict[str, float]:
    """Medians: tokens and useful TFLOP of passes, and TFLOP of a large product, all per second."""
    import torch
    from transformers import Qwen3Config

    config = Qwen3Config(**shape)
    engine = make_engine(config, device, micro_batch)
    engine.create(rank, "run")
    command = ForwardBackward("run", random_data(config.vocab_size, [LENGTH] * DATUMS), "cross_entropy")
    a, b, out = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(3))
    for _ in range(2):
        engine.loss(command)
        torch.mm(a, b, out=out)
    steps, products = [], []
    for _ in track(range(rounds), f"{DATUMS}×{LENGTH}", console=console):
        products.append(seconds(lambda: [torch.mm(a, b, out=out) for _ in range(10)]) / 10)
        steps.append(seconds(lambda: engine.loss(command)))
    rate = DATUMS * LENGTH / median(steps)
    return {
        "tokens_per_s": round(rate, 1),
        "useful_tflops": round(rate * useful_flops_per_token(config, rank) / 1e12, 2),
        "product_tflops": round(2 * PRODUCT**3 / median(products) / 1e12, 2),
    }


def known_peak(name: str) -> float | None:
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def show(result: dict[str, Any]) -> None:
    title = f"forward_backward, {DATUMS}×{LENGTH}, rank {result['rank']}, {result['device']}"
    table = Table("figure", "value", "aim", title=title)
    colour = "green" if result["utilisation"] >= AIM else "red"
    table.add_row("model FLOP utilisation", f"[{colour}]{result['utilisation']:.3f}", f"≥ {AIM}")
    table.add_row("token/s", f"{result['tokens_per_s']:.0f}", "")
    table.add_row("useful TFLOP/s", f"{result['useful_tflops']:.0f}", "")
    table.add_row("  torch.mm's", f"{result['product_tflops']:.0f}", "")
    table.add_row("  peak", f"{result['peak_tflops']:.0f}", "")
    table.add_row("memory, GB at most", f"{result['memory_gb']:.1f}", "")
    console.print(table)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check the device, measure, and put the figures together."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device, and torch finds none here")
    name = torch.cuda.get_device_name()
    peak = arguments.peak_tflops or known_peak(name)
    if peak is None:
        sys.exit(f"the bfloat16 peak of {name} is not in the benchmark's list: give it with --peak-tflops")
    figures = measure(SHAPE, "cuda", arguments.rank, arguments.micro_batch, arguments.rounds)
    return {
        "device": name,
        "torch": torch.__version__,
        "rank": arguments.rank,
        "micro_batch": arguments.micro_batch,
        "rounds": arguments.rounds,
        "utilisation": round(figures["useful_tflops"] / peak, 4),
        "aim": AIM,
        **figures,
        "peak_tflops": peak,
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=EngineConfig().max_batch_tokens, help="tokens at a time")
    parser.add_argument("--peak-tflops", type=float, help="of the device; looked up by its name by default")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    enter_worker_environment()
    result = run(arguments)
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
