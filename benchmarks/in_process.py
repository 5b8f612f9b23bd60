"""The engine in this process, driven as a worker drives it, and random tokens for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mint.config import EngineConfig, ModelSource
from mint.dispatch.local_worker import worker_environment
from mint.engine.core import (
    AdamParams,
    Command,
    CreateRun,
    Datum,
    ExportRevision,
    FloatArray,
    ForwardBackward,
    Int32Array,
    Int64Array,
    LoraShape,
    LossInput,
    ModelInfo,
    OptimStep,
    Passed,
    Progress,
    Result,
    Revision,
    Sample,
    Sampled,
    SamplingParams,
    UnloadRun,
)
from mint.errors import MintError

if TYPE_CHECKING:
    from mint.engine.engine import Answer, Engine


def enter_worker_environment() -> None:
    """Start this program again with what a worker's process is started with, which counts from its first moment on."""
    environment = worker_environment()
    if environment.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


class InProcess:
    """An engine with its runs; commands go in together and their results come back together.

    `info` is what a worker says of a model that was loaded from its folder.
    """

    def __init__(self, engine: Engine, info: ModelInfo | None = None) -> None:
        self.info = info
        self._engine = engine
        self._numbers = count(1)

    @classmethod
    def load(cls, folder: Path, threads: int, config: EngineConfig | None = None) -> InProcess:
        """With a worker's settings, the default ones if not given, and that many threads for large batches."""
        import torch

        from mint.engine.worker import build_engine

        torch.set_num_threads(threads)  # an engine keeps to what it finds when it is made
        engine, info = build_engine(ModelSource(folder.name, str(folder)), config or EngineConfig(), print)
        return cls(engine, info)

    def execute(self, *commands: Command) -> list[Result]:
        """Submit all, then step until all are answered.

        Raises:
            MintError: what a command was refused with.
        """
        numbers = [next(self._numbers) for _ in commands]
        answers: dict[int, Result | MintError] = {}
        for number, command in zip(numbers, commands, strict=True):
            answers.update(_final(self._engine.submit(number, command)))
        while len(answers) < len(commands):
            answers.update(_final(self._engine.step()))
        return [_result(answers[number]) for number in numbers]

    def create(self, rank: int, *names: str) -> None:
        """Make runs with fresh adapters."""
        self.execute(*(CreateRun(name, LoraShape(rank, seed=place)) for place, name in enumerate(names)))

    def unload(self, *names: str) -> None:
        """Forget runs."""
        self.execute(*(UnloadRun(name) for name in names))

    def step(self, *names: str) -> None:
        """An optimizer step of each run, which leaves the weights as they are."""
        self.execute(*(OptimStep(name, AdamParams(learning_rate=0.0)) for name in names))

    def export(self, rank: int, folder: Path, count: int = 1) -> list[Revision]:
        """Revisions of fresh adapters, written below `folder`."""
        revisions = [Revision(name, folder / name) for name in (f"rank-{rank}-{place}" for place in range(count))]
        for revision in revisions:
            self.create(rank, revision.key)
            self.execute(ExportRevision(revision.key, revision.directory, revision.key))
            self.unload(revision.key)
        return revisions

    def sample(self, *commands: Sample) -> int:
        """Draw samples together; how many tokens that is.

        Raises:
            RuntimeError: not as many as asked for.
        """
        drawn = [len(s.tokens) for r in self.execute(*commands) if isinstance(r, Sampled) for s in r.sequences]
        wanted = [command.params.max_tokens for command in commands for _ in range(command.num_samples)]
        if drawn != wanted:
            raise RuntimeError(f"{sum(drawn)} tokens were drawn in place of {sum(wanted)}")
        return sum(drawn)

    def loss(self, *passes: ForwardBackward) -> float:
        """Run passes together; the sum of their losses."""
        results = self.execute(*passes)
        return sum(result.metrics["loss:sum"] for result in results if isinstance(result, Passed))


def _final(answers: Iterable[Answer]) -> Iterator[tuple[int, Result | MintError]]:
    return ((number, answer) for number, answer in answers if not isinstance(answer, Progress))


def _result(answer: Result | MintError) -> Result:
    if isinstance(answer, MintError):
        raise answer
    return answer


def useful_flops_per_token(config: Any, rank: int) -> int:
    """What a forward and backward pass of LoRA on every linear layer must multiply and add, for one token.

    Frozen weights: 2 per parameter forward, 2 for the gradient of their inputs. Factors: those 4, and 2 for their own
    gradients. Attention, norms and what is computed again are left out, so a rate counted this way is on the low side.
    """
    shapes = linear_shapes(config).values()
    return sum(4 * inner * outer + 6 * rank * (inner + outer) for inner, outer in shapes)


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer, by its name; the unembedding's is `lm_head`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def datum(tokens: Int64Array, **inputs: FloatArray) -> Datum:
    """A sequence of N + 1 tokens, of which N predict their next; weights are 1."""
    size = len(tokens) - 1
    loss_inputs: dict[str, LossInput] = {"target_tokens": tokens[1:], "weights": np.ones(size, np.float32), **inputs}
    return Datum(tokens[:-1].astype(np.int32), loss_inputs)


def random_data(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> tuple[Datum, ...]:
    """Datums of those lengths, for cross_entropy."""
    rng = np.random.default_rng(seed)
    return tuple(datum(rng.integers(0, vocab_size, length + 1)) for length in lengths)


def random_prompts(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> Iterator[tuple[Int32Array, ...]]:
    """Prompts of those lengths, others each time, so that none is found in a cache of prefixes."""
    rng = np.random.default_rng(seed)
    while True:
        yield tuple(rng.integers(0, vocab_size, length, np.int32) for length in lengths)


def continuation(
    prompt: Int32Array, max_tokens: int, revision: Revision | None = None, num_samples: int = 1, seed: int = 0
) -> Sample:
    """Samples of exactly `max_tokens` tokens: nothing stops them earlier."""
    return Sample(revision, prompt, num_samples, SamplingParams(max_tokens, seed))


def grpo_group(vocab_size: int, samples: int, prompt: int, completion: int) -> tuple[Datum, ...]:
    """Completions of one prompt, for importance_sampling.

    On the prompt `logprobs` and `advantages` are zero. A completion has one advantage (GRPO: Shao et al., 2024,
    arXiv 2402.03300), and log-probabilities near those of an even choice, as a random model gives.
    """
    rng = np.random.default_rng(0)
    beginning = rng.integers(0, vocab_size, prompt)

    def one() -> Datum:
        tokens = np.concatenate([beginning, rng.integers(0, vocab_size, completion)])
        logprobs, advantages = np.zeros((2, len(tokens) - 1), np.float32)
        logprobs[-completion:] = rng.normal(-np.log(vocab_size), 0.1, completion)
        advantages[-completion:] = rng.normal()
        return datum(tokens, logprobs=logprobs, advantages=advantages)

    return tuple(one() for _ in range(samples))
