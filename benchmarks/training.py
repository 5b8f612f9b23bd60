"""How fast the engine trains, against the machine's limit and against plain transformers with PEFT.

    python -m benchmarks.training [--only machine,plain,tenants,http] [--rounds 5] [--models FOLDER] [--out FILE]

Each figure is a rate and that of its baseline, measured in turn, so that both see the same machine; their ratio is the
median of the rounds' ratios. Prints a table with the aim of each, and one JSON object.

  machine   useful arithmetic of a pass against a large product of torch's, on the same threads
  plain     the engine against transformers and PEFT with padding and autograd: equal lengths, mixed lengths, and
            completions of one prompt
  tenants   passes of several runs that are submitted together against those of one run
  http      a pass through the SDK and a server against one of the engine in this process
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from benchmarks.comparison import Comparison, Work
from benchmarks.in_process import InProcess, grpo_group, random_data, useful_flops_per_token
from benchmarks.limits import PRODUCT, product_rate
from benchmarks.models import SMALL, TINY
from benchmarks.suite import Bench, Cases, run_suite, vocab_size
from mint.cli.private_server import private_server
from mint.engine.core import Datum, ForwardBackward

RANK = 32
DATUMS, LENGTH = 16, 256
SHORTEST, LONGEST = 32, 448
PROMPT, COMPLETION = 512, 64


def num_tokens(data: tuple[Datum, ...]) -> int:
    return sum(len(datum.tokens) for datum in data)


def even_data() -> tuple[Datum, ...]:
    return random_data(vocab_size(SMALL), [LENGTH] * DATUMS)


def machine(bench: Bench) -> Iterator[Comparison]:
    import torch
    from transformers import AutoConfig

    flops = useful_flops_per_token(AutoConfig.from_pretrained(bench.small_folder), RANK) * DATUMS * LENGTH
    command = ForwardBackward("machine", even_data(), "cross_entropy")
    bench.small.create(RANK, "machine")
    product, notes = product_rate(), {}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        onednn = torch.ops.mkldnn._linear_pointwise.default
        a, b = (torch.randn(PRODUCT, PRODUCT) for _ in range(2))
        notes["oneDNN's product"] = Work(product.amount, lambda: onednn(a, b, None, "none", [], ""), repeats=5)
    ours = Work(flops / 1e9, lambda: bench.small.loss(command))
    yield Comparison(f"machine: {DATUMS}×{LENGTH}", "GFLOP/s", ours, product, 0.78, notes)
    bench.small.unload("machine")


def plain(bench: Bench) -> Iterator[Comparison]:
    from benchmarks.plain import Plain

    rng = np.random.default_rng(0)
    even = even_data()
    mixed = random_data(vocab_size(SMALL), rng.integers(SHORTEST, LONGEST + 1, DATUMS).tolist())
    group = grpo_group(vocab_size(SMALL), DATUMS, PROMPT, COMPLETION)
    baseline = Plain(bench.small_folder, RANK)
    bench.small.create(RANK, "plain")

    def figure(
        name: str,
        loss: str,
        data: tuple[Datum, ...],
        theirs: Callable[[], float],
        aim: float,
        notes: Mapping[str, Work] | None = None,
    ) -> Comparison:
        command, size = ForwardBackward("plain", data, loss), num_tokens(data)
        ours = Work(size, lambda: bench.small.loss(command))
        return Comparison(f"plain: {name}", "token/s", ours, Work(size, theirs), aim, notes or {}, same_loss=True)

    yield figure(f"{DATUMS}×{LENGTH}", "cross_entropy", even, baseline.cross_entropy(even), 1.15)
    lengths = f"{DATUMS}×({SHORTEST} to {LONGEST})"
    yield figure(lengths, "cross_entropy", mixed, baseline.cross_entropy(mixed), 1.6)
    # less than what the engine answers: that has the log-probabilities of the prompt too
    short = Work(num_tokens(group), baseline.importance_sampling(group, last=COMPLETION))
    notes = {"no logits of the prompt": short}
    shared, whole = f"{DATUMS}×({PROMPT} shared + {COMPLETION})", baseline.importance_sampling(group)
    yield figure(shared, "importance_sampling", group, whole, 4.0, notes)
    bench.small.unload("plain")


def tenants(bench: Bench) -> Iterator[Comparison]:
    even = even_data()
    short = [random_data(vocab_size(TINY), [32], seed) for seed in range(16)]
    yield from together(
        bench.small, [even[share : share + 4] for share in range(0, DATUMS, 4)], even, f"4 runs × 4×{LENGTH}", 0.95
    )
    yield from together(bench.tiny, short, short[0], "16 tiny runs × 1×32", 4.0, repeats=20)


def together(
    engine: InProcess,
    shares: list[tuple[Datum, ...]],
    alone: tuple[Datum, ...],
    name: str,
    aim: float,
    repeats: int = 1,
) -> Iterator[Comparison]:
    """A pass of each of several runs, submitted together, against a pass of one run; each follows an optimizer step."""
    runs = [f"tenant-{place}" for place in range(len(shares))]
    engine.create(RANK, "alone", *runs)
    passes = [ForwardBackward(run, data, "cross_entropy") for run, data in zip(runs, shares, strict=True)]
    single = ForwardBackward("alone", alone, "cross_entropy")
    amount = sum(map(num_tokens, shares))
    ours = Work(amount, lambda: engine.loss(*passes), repeats, lambda: engine.step(*runs))
    baseline = Work(num_tokens(alone), lambda: engine.loss(single), repeats, lambda: engine.step("alone"))
    yield Comparison(f"tenants: {name}", "token/s", ours, baseline, aim)
    engine.unload("alone", *runs)


def http(bench: Bench) -> Iterator[Comparison]:
    import mint as tinker
    from mint import types

    even = even_data()
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(datum.tokens.tolist()),
            loss_fn_inputs={
                "target_tokens": types.TensorData(
                    data=datum.loss_inputs["target_tokens"].tolist(), dtype="int64", shape=[LENGTH]
                )
            },
        )
        for datum in even
    ]
    bench.small.create(RANK, "in process")
    command = ForwardBackward("in process", even, "cross_entropy")
    with private_server([f"{SMALL}={bench.small_folder}"]) as server:
        service = tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key)
        run = service.create_lora_training_client(base_model=SMALL, rank=RANK).result()
        ours = Work(num_tokens(even), lambda: run.forward_backward(data, "cross_entropy").result())
        baseline = Work(num_tokens(even), lambda: bench.small.loss(command))
        yield Comparison(f"http: {DATUMS}×{LENGTH}", "token/s", ours, baseline, 0.9)
        service.close("success").result()
    bench.small.unload("in process")


CASES: Cases = {"machine": machine, "plain": plain, "tenants": tenants, "http": http}


if __name__ == "__main__":
    run_suite(__doc__, f"forward_backward, rank {RANK}", CASES, rounds=5)
