"""Pre-training on the CPU: packing, the loss, the loop, and how an artefact is written.

Knows documents, tokens and torch.  Must not know which skills there are.
"""

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mint.tiny.recipe.corpus import documents
from mint.tiny.recipe.tokenizer import CONTEXT_LENGTH

IGNORED_WEIGHT: Final = 0.0
CONTEXT_WEIGHT: Final = 0.1  # random questions cannot be predicted: read them, but do not dwell on them
ANSWER_WEIGHT: Final = 1.0


@dataclass(frozen=True)
class Plan:
    """All that decides the result: the same plan gives the same training, step by step."""

    steps: int = 3000
    seed: int = 20
    tokens_per_step: int = 4096
    row: int = 256
    long_row: int = 1024  # every eighth step, so that later positions are not new to the model
    learning_rate: float = 2.5e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0

    def row_at(self, step: int) -> int:
        """Return the length of the rows read at this step."""
        return self.long_row if step % 8 == 7 else self.row

    def rate_at(self, step: int) -> float:
        """Return the learning rate: a linear warm-up, then a cosine down to a hundredth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class Batch:
    """Packed rows of tokens, and for each token how much its prediction counts."""

    tokens: torch.Tensor
    weights: torch.Tensor


@dataclass
class Record:
    """What a training run has measured so far; `loss` is a running mean."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return the architecture with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        intermediate_size=768,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def batches(tokenizer: PreTrainedTokenizerFast, plan: Plan) -> Iterator[Batch]:
    """Yield one batch per step; each step draws from its own seed and so depends on no other."""
    for step in range(plan.steps):
        row = plan.row_at(step)
        source = _weighted(tokenizer, Random(f"{plan.seed}:{step}"))
        rows = [_fill(source, row) for _ in range(plan.tokens_per_step // row)]
        yield Batch(torch.tensor([tokens for tokens, _ in rows]), torch.tensor([weights for _, weights in rows]))


def _weighted(tokenizer: PreTrainedTokenizerFast, rng: Random) -> Iterator[tuple[list[int], list[float]]]:
    """Yield documents as tokens with weights."""
    bare = tokenizer.backend_tokenizer
    for document in documents(rng):
        tokens: list[int] = []
        weights: list[float] = []
        for span in document:
            ids = bare.encode(span.text, add_special_tokens=False).ids
            tokens += ids
            weights += [ANSWER_WEIGHT if span.answer else CONTEXT_WEIGHT] * len(ids)
        yield tokens, weights


def _fill(source: Iterator[tuple[list[int], list[float]]], row: int) -> tuple[list[int], list[float]]:
    """Pack whole documents into a row and cut the last: a row always starts where a prompt would."""
    tokens: list[int] = []
    weights: list[float] = []
    while len(tokens) < row:
        more_tokens, more_weights = next(source)
        tokens += more_tokens
        weights += more_weights
    weights[0] = IGNORED_WEIGHT
    return tokens[:row], weights[:row]


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the weighted mean cross-entropy of each token given those before it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    plan: Plan,
    checkpoint: Callable[[Record], None],
    checkpoint_every: int = 200,
) -> Record:
    """Run the plan, calling `checkpoint` now and then; the weights stay in 32 bits throughout."""
    optimizer = _optimizer(model, plan)
    record = Record()
    started = time.monotonic()
    model.train()
    with progress_bar() as progress:
        bar = progress.add_task("training", total=plan.steps, loss=math.nan)
        for step, batch in enumerate(batches(tokenizer, plan)):
            loss = _step(model, batch, optimizer, plan.rate_at(step), plan.clip)

            record.steps, record.tokens = step + 1, record.tokens + batch.tokens.numel()
            record.seconds = time.monotonic() - started
            # A running mean: single batches scatter too much to be read.
            record.loss = loss if step == 0 else 0.95 * record.loss + 0.05 * loss
            progress.update(bar, advance=1, loss=record.loss)
            if record.steps % 50 == 0:
                progress.console.print(json.dumps(asdict(record)), soft_wrap=True)
            if record.steps % checkpoint_every == 0 or record.steps == plan.steps:
                checkpoint(record)
    return record


def _step(model: Qwen3ForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> float:
    """Take one optimizer step at this learning rate and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _optimizer(model: Qwen3ForCausalLM, plan: Plan) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices but not norms: a norm pulled to zero is a layer switched off."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)


def progress_bar() -> Progress:
    """Steps, and the loss of the last one, as `fields[loss]`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16, each file replaced in one move: readers never see half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    narrow = copy.deepcopy(model)
    narrow.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        narrow.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        for file in Path(scratch).iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)
