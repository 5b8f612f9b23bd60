"""How fast the engine samples, against the machine's limit and against plain transformers with PEFT.

    python -m benchmarks.sampling [--only machine,plain,adapters,staggered] [--rounds 3] [--models FOLDER] [--out FILE]

Each figure is a rate and that of its baseline, measured in turn, so that both see the same machine; their ratio is the
median of the rounds' ratios. Prompts are random and new in each round; nothing but its length ends a sample, and the
tokens that count are those that were asked for and drawn. Prints a table with the aim of each, and one JSON object.

  machine    a decode step against its floor: weights, keys and values moved once as fast as a large copy, or its
             arithmetic at the rate of a large product, whichever takes longer; and a prefill against that product
  plain      the engine against `generate` of transformers and PEFT: samples of one prompt, requests of different
             lengths in one batch, which runs to the longest, and samples of a long prompt
  adapters   a batch on as many adapters as samples against the same batch on one
  staggered  short requests through the SDK and a server, among others that come and go, against the same alone
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.comparison import Comparison, Work
from benchmarks.in_process import InProcess, continuation, random_prompts
from benchmarks.limits import Arithmetic, Floor, copy_rate, product_rate
from benchmarks.models import SMALL
from benchmarks.suite import Bench, Cases, run_suite, vocab_size
from mint.cli.private_server import private_server
from mint.engine.core import Int32Array, Revision

RANK = 32
BATCH, PROMPT, STEPS = 32, 96, 64
"""A decode step's sequences, and the steps that are timed: their lengths are around 128."""
PREFILLED = (256,) * 8
SHORTEST, LONGEST = 8, 256
ADAPTERS, ADAPTER_RANK = 64, 8
VOCAB = vocab_size(SMALL)


@dataclass(frozen=True)
class DecodeSteps:
    """Steps of a batch: the time of samples of 1 + STEPS tokens, less that of one token after the same prompts."""

    engine: InProcess
    prompts: Iterator[tuple[Int32Array, ...]]
    revision: Revision | None

    def warm_up(self) -> None:
        """A few steps."""
        self._seconds(next(self.prompts), 4)

    def rate(self, threads: int) -> float:
        """Steps per second."""
        import torch

        torch.set_num_threads(threads)
        prompts = next(self.prompts)
        first = self._seconds(prompts, 1)
        again = self._seconds(prompts, 1)  # with what is kept of the prompts, as the longer run will find it
        whole = self._seconds(prompts, 1 + STEPS)
        return STEPS / (whole - min(first, again))

    def _seconds(self, prompts: Sequence[Int32Array], tokens: int) -> float:
        started = time.perf_counter()
        self.engine.sample(*(continuation(prompt, tokens, self.revision, seed=i) for i, prompt in enumerate(prompts)))
        return time.perf_counter() - started


def machine(bench: Bench) -> Iterator[Comparison]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(bench.small_folder)
    copy, product = copy_rate(), product_rate()
    behind = PROMPT + 1 + STEPS / 2
    with TemporaryDirectory() as folder:
        (revision,) = bench.small.export(RANK, Path(folder))
        for name, rank, adapter in (("base", 0, None), (f"adapter of rank {RANK}", RANK, revision)):
            cost = Arithmetic.of(config, rank)
            gigabytes = (cost.weight_bytes + BATCH * behind * cost.cached_bytes) / 1e9
            flops = BATCH * (2 * (cost.decoder + cost.head) + cost.attention_flops(behind))
            ours = DecodeSteps(bench.small, random_prompts(VOCAB, [PROMPT] * BATCH), adapter)
            floor = Floor(1, gigabytes, flops / 1e9, copy, product)
            yield Comparison(f"machine: decode {BATCH}, {name}", "step/s", ours, floor, 0.5)
            yield _prefill(bench, cost, adapter, f"machine: prefill {sum(PREFILLED)}, {name}", product)


def _prefill(bench: Bench, cost: Arithmetic, revision: Revision | None, name: str, product: Work) -> Comparison:
    prompts = random_prompts(VOCAB, PREFILLED, seed=1)
    flops = sum(
        length * (2 * cost.decoder + cost.attention_flops((length + 1) / 2)) + 2 * cost.head for length in PREFILLED
    )
    ours = Work(flops / 1e9, lambda: bench.small.sample(*(continuation(p, 1, revision) for p in next(prompts))))
    return Comparison(name, "GFLOP/s", ours, product, 0.75)


def plain(bench: Bench) -> Iterator[Comparison]:
    from benchmarks.plain import Plain

    baseline = Plain(bench.small_folder, RANK)
    lengths = np.linspace(SHORTEST, LONGEST, BATCH).astype(int).tolist()
    Random(0).shuffle(lengths)
    with TemporaryDirectory() as folder:
        (revision,) = bench.small.export(RANK, Path(folder))

        def group(samples: int, prompt: int, tokens: int, aim: float) -> Comparison:
            ours, theirs = (random_prompts(VOCAB, [prompt]) for _ in range(2))
            size = samples * tokens

            def draw(tokens: int) -> int:
                return bench.small.sample(continuation(next(ours)[0], tokens, revision, samples))

            return Comparison(
                f"plain: {samples}×{tokens} of one prompt of {prompt}",
                "token/s",
                Work(size, lambda: draw(tokens), first=lambda: draw(2)),
                Work(
                    size,
                    lambda: baseline.generate(next(theirs), tokens, samples),
                    first=lambda: baseline.generate(next(theirs), 2, samples),
                ),
                aim,
            )

        def spread() -> Comparison:
            ours, theirs = (random_prompts(VOCAB, [64] * BATCH) for _ in range(2))

            def draw(lengths: Sequence[int]) -> int:
                pairs = zip(next(ours), lengths, strict=True)
                return bench.small.sample(*(continuation(p, length, revision, seed=length) for p, length in pairs))

            return Comparison(
                f"plain: {BATCH}×({SHORTEST} to {LONGEST})",
                "token/s",
                Work(sum(lengths), lambda: draw(lengths), first=lambda: draw([2] * BATCH)),
                Work(
                    sum(lengths),
                    lambda: baseline.generate(next(theirs), LONGEST),
                    first=lambda: baseline.generate(next(theirs), 2),
                ),
                3.5,
            )

        yield group(16, 64, 128, 2.5)
        yield spread()
        yield group(16, 1024, 64, 6.0)


def adapters(bench: Bench) -> Iterator[Comparison]:
    with TemporaryDirectory() as folder:
        revisions = bench.small.export(ADAPTER_RANK, Path(folder), ADAPTERS)

        def batch(revisions: Sequence[Revision]) -> Work:
            prompts, tokens = random_prompts(VOCAB, [32] * ADAPTERS), 32

            def draw() -> int:
                pairs = zip(next(prompts), revisions, strict=True)
                return bench.small.sample(*(continuation(p, tokens, revision) for p, revision in pairs))

            return Work(ADAPTERS * tokens, draw)

        name = f"adapters: {ADAPTERS} of rank {ADAPTER_RANK}"
        yield Comparison(name, "token/s", batch(revisions), batch(revisions[:1] * ADAPTERS), 0.8)


@dataclass(frozen=True)
class Request:
    """When it comes, in seconds, and its tokens."""

    at: float
    prompt: int
    max_tokens: int


def arrivals(rng: Random) -> tuple[Request, ...]:
    return tuple(
        Request(0.15 * place, rng.choice((16, 40, 80)), rng.choice((8, 16, 32, 64, 96))) for place in range(24)
    )


ARRIVALS = arrivals(Random(3))
SHORT = 16
"""Requests of at most so many tokens are those whose latency is looked at."""


@dataclass(frozen=True)
class Latency:
    """One over the median latency of the short requests among ARRIVALS.

    With `together` all come at their times; without, the short ones alone, one after the other.
    """

    sampler: Any
    together: bool
    seeds: Iterator[int]

    def warm_up(self) -> None:
        """One request."""
        self._seconds(ARRIVALS[0])

    def rate(self, threads: int) -> float:
        """One over seconds."""
        del threads  # the server is another process
        if not self.together:
            return 1 / median(self._seconds(request) for request in ARRIVALS if request.max_tokens <= SHORT)
        started = time.perf_counter()

        def wait_and_ask(request: Request) -> float:
            time.sleep(max(0.0, request.at - (time.perf_counter() - started)))
            return self._seconds(request)

        with ThreadPoolExecutor(len(ARRIVALS)) as pool:
            seconds = list(pool.map(wait_and_ask, ARRIVALS))
        pairs = zip(ARRIVALS, seconds, strict=True)
        return 1 / median(latency for request, latency in pairs if request.max_tokens <= SHORT)

    def _seconds(self, request: Request) -> float:
        from mint import types

        (prompt,) = next(random_prompts(VOCAB, [request.prompt], next(self.seeds)))
        params = types.SamplingParams(max_tokens=request.max_tokens, stop=[])
        started = time.perf_counter()
        answer = self.sampler.sample(types.ModelInput.from_ints(prompt.tolist()), 1, params).result()
        seconds = time.perf_counter() - started
        if len(answer.sequences[0].tokens) != request.max_tokens:
            raise RuntimeError(f"{len(answer.sequences[0].tokens)} tokens were drawn in place of {request.max_tokens}")
        return seconds


def staggered(bench: Bench) -> Iterator[Comparison]:
    import mint as tinker

    with private_server([f"{SMALL}={bench.small_folder}"]) as server:
        service = tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key)
        sampler = service.create_sampling_client(base_model=SMALL)
        seeds = count()
        among, alone = (Latency(sampler, together, seeds) for together in (True, False))
        yield Comparison(f"staggered: up to {SHORT} tokens", "1/latency, 1/s", among, alone, round(1 / 1.5, 3))
        service.close("success").result()


CASES: Cases = {"machine": machine, "plain": plain, "adapters": adapters, "staggered": staggered}


if __name__ == "__main__":
    run_suite(__doc__, "sampling", CASES, rounds=3)
