"""How far the log-probabilities of sampled tokens are from those of a training pass over the same tokens.

    python -m benchmarks.mismatch [--tokens 100000] [--model mint/tiny] [--dtype float32] [--out FILE]

Reinforcement learning takes both for the same policy. Conversations of several turns are sampled, on the base model and
on trained adapters of two ranks, all in the same batches: several samples of each prompt, of different lengths, each
turn's prompt being the last one, one of its samples, and some new tokens. Then `forward` gives every sampled token's
log-probability under the weights it was drawn from; the base model's is that of a run whose adapter adds nothing yet.

Reports the largest and the mean absolute difference, and KL(sampler ‖ trainer) per token by the estimators k1 and k3 of
Schulman, "Approximating KL Divergence", 2020, joschu.net/blog/kl-approx.html: the mean of −d, and of exp(d) − 1 − d,
where d is the trainer's log-probability less the sampler's. Prints a table and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.in_process import InProcess, continuation, datum, enter_worker_environment, random_data
from benchmarks.models import SMALL, model_folder
from mint.config import EngineConfig
from mint.engine.core import (
    AdamParams,
    ExportRevision,
    FloatArray,
    ForwardBackward,
    Int32Array,
    OptimStep,
    Passed,
    Revision,
    Sample,
    Sampled,
)
from mint.tiny import NAME, model_path

RANKS: Mapping[str, int] = {"base model": 8, "rank 8": 8, "rank 32": 32}
"""The policies, each a run; the first one's adapter stays as it was made."""
BASE = next(iter(RANKS))
CONVERSATIONS, TURNS, SAMPLES = 8, 3, 4
"""Conversations of each policy at a time, turns of each, samples of each turn."""
AIMS: Mapping[str, tuple[str, float]] = {"float32": ("largest", 1e-5), "bfloat16": ("mean", 1e-3)}
DType = Literal["float32", "bfloat16"]
console = Console(stderr=True)


@dataclass(frozen=True)
class Turn:
    """A prompt and its samples, from one policy."""

    run: str
    prompt: Int32Array
    sampled: Sampled

    def forward(self) -> ForwardBackward:
        """The pass over prompt and samples that gives each sampled token's log-probability."""
        whole = (np.concatenate([self.prompt, s.tokens]).astype(np.int64) for s in self.sampled.sequences)
        return ForwardBackward(self.run, tuple(map(datum, whole)), "cross_entropy", forward_only=True)


class Policies:
    """The runs and their revisions, and the conversations they have."""

    def __init__(self, engine: InProcess, vocab_size: int, folder: Path) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(0)
        self._seeds = count()
        self._revisions = {run: self._train(run, rank, folder) for run, rank in RANKS.items()}

    def _train(self, run: str, rank: int, folder: Path) -> Revision | None:
        """Large steps on random tokens: the adapter then matters as much as one that has learnt something."""
        self._engine.create(rank, run)
        if run == BASE:
            return None
        data = random_data(self._vocab_size, [64] * 4, seed=rank)
        for _ in range(4):
            command = ForwardBackward(run, data, "cross_entropy")
            self._engine.execute(command, OptimStep(run, AdamParams(learning_rate=3e-3)))
        revision = Revision(run, folder / run)
        self._engine.execute(ExportRevision(run, revision.directory, revision.key))
        return revision

    def turns(self) -> Iterator[list[Turn]]:
        """Turns of all conversations, which are sampled together; without end."""
        while True:
            prompts = [(run, self._tokens(8, 96)) for run in RANKS for _ in range(CONVERSATIONS)]
            for _ in range(TURNS):
                results = self._engine.execute(*(self._sample(run, prompt) for run, prompt in prompts))
                sampled = [result for result in results if isinstance(result, Sampled)]
                yield [Turn(run, prompt, s) for (run, prompt), s in zip(prompts, sampled, strict=True)]
                prompts = [
                    (run, np.concatenate([prompt, s.sequences[0].tokens, self._tokens(4, 24)]))
                    for (run, prompt), s in zip(prompts, sampled, strict=True)
                ]

    def _sample(self, run: str, prompt: Int32Array) -> Sample:
        tokens = int(self._rng.integers(8, 65))
        return continuation(prompt, tokens, self._revisions[run], SAMPLES, seed=next(self._seeds))

    def _tokens(self, shortest: int, longest: int) -> Int32Array:
        return self._rng.integers(0, self._vocab_size, self._rng.integers(shortest, longest + 1), np.int32)


def logprobs(engine: InProcess, turns: Sequence[Turn]) -> tuple[FloatArray, FloatArray]:
    """Of all sampled tokens: the sampler's and the trainer's, float32 (N,) each."""
    sampler, trainer = [], []
    for turn, passed in zip(turns, engine.execute(*(turn.forward() for turn in turns)), strict=True):
        assert isinstance(passed, Passed)
        for sequence, whole in zip(turn.sampled.sequences, passed.logprobs, strict=True):
            sampler.append(sequence.logprobs)
            trainer.append(whole[-len(sequence.tokens) :])
    return np.concatenate(sampler), np.concatenate(trainer)


def differences(sampler: FloatArray, trainer: FloatArray) -> dict[str, float]:
    """The figures, computed in float64."""
    d = trainer.astype(np.float64) - sampler.astype(np.float64)
    return {
        "largest": float(np.abs(d).max()),
        "mean": float(np.abs(d).mean()),
        "kl_k1": float(-d.mean()),
        "kl_k3": float((np.expm1(d) - d).mean()),
        "mean_logprob": float(sampler.mean(dtype=np.float64)),
    }


def measure(engine: InProcess, vocab_size: int, wanted: int) -> dict[str, Any]:
    sampler: list[FloatArray] = []
    trainer: list[FloatArray] = []
    tokens = prompt_tokens = cached_tokens = 0
    with TemporaryDirectory() as folder, Progress(console=console) as progress:
        task = progress.add_task("tokens", total=wanted)
        for turns in Policies(engine, vocab_size, Path(folder)).turns():
            ours, theirs = logprobs(engine, turns)
            sampler.append(ours)
            trainer.append(theirs)
            tokens += len(ours)
            prompt_tokens += sum(len(turn.prompt) for turn in turns)
            cached_tokens += sum(turn.sampled.cached_tokens for turn in turns)
            progress.update(task, completed=tokens)
            if tokens >= wanted:
                break
    figures = differences(np.concatenate(sampler), np.concatenate(trainer))
    return {"tokens": tokens, "prompt_tokens": prompt_tokens, "cached_prompt_tokens": cached_tokens, **figures}


def show(result: Mapping[str, Any]) -> None:
    name, aim = AIMS[result["dtype"]]
    title = f"sampler and trainer, {result['model']}, {result['dtype']} on {result['device']}"
    table = Table("figure", "value", "aim", title=title)
    for label, key in (
        ("largest difference", "largest"),
        ("mean difference", "mean"),
        ("KL, k1", "kl_k1"),
        ("KL, k3", "kl_k3"),
    ):
        value = f"{result[key]:.2e}"
        if key == name:
            colour = "green" if result[key] <= aim else "red"
            table.add_row(label, f"[{colour}]{value}", f"≤ {aim:.0e}")
        else:
            table.add_row(label, value, "")
    table.add_row("mean log-probability", f"{result['mean_logprob']:.2f}", "")
    table.add_row("sampled tokens", str(result["tokens"]), "")
    table.add_row("prompt tokens, of them cached", f"{result['prompt_tokens']}, {result['cached_prompt_tokens']}", "")
    console.print(table)


def run(model: str, dtype: DType | None, tokens: int) -> dict[str, Any]:
    """Load, measure, and say what on."""
    import torch
    from transformers import AutoConfig

    has_cuda = torch.cuda.is_available()
    dtype = dtype or ("bfloat16" if has_cuda else "float32")
    config = EngineConfig(device="cuda" if has_cuda else "cpu", dtype=dtype)
    folder = model_path() if model == NAME else model_folder(SMALL)
    engine = InProcess.load(folder, torch.get_num_threads(), config)
    return {
        "model": model,
        "device": torch.cuda.get_device_name() if has_cuda else "cpu",
        "dtype": dtype,
        "torch": version("torch"),
        **measure(engine, AutoConfig.from_pretrained(folder).vocab_size, tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--model", choices=[NAME, SMALL], default=NAME)
    parser.add_argument("--dtype", choices=list(AIMS), help="of the base model; by default what a worker would take")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.tokens < 1:
        parser.error("--tokens must be at least 1")
    enter_worker_environment()
    result = run(arguments.model, arguments.dtype, arguments.tokens)
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
