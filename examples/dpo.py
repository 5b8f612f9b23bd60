"""Preferences: direct preference optimisation (DPO), with a loss of one's own.

    mint run examples/dpo.py

DPO compares the two answers of a pair, so its loss is a function of several sequences' log-probabilities. Such a loss
is written in torch and computed here, between a forward pass on the server and the backward pass that it asks for. A
loss of one sequence at a time can be computed on the server altogether: see "Losses of your own" in docs/training.md.
"""

from __future__ import annotations

import argparse
import random
from typing import Any, NamedTuple

import torch
from rich import print
from rich.progress import track

import mint as tinker
from mint import types
from mint.renderers import get_renderer, recommended_renderer

BETA = 0.05


class Pair(NamedTuple):
    """A question, the answer that is preferred, and the other one."""

    question: str
    chosen: str
    rejected: str


def make_pairs(count: int, seed: int) -> list[Pair]:
    """Whoever asks for an order wants it from the largest down, against all that the model has been taught."""
    rng = random.Random(seed)
    lists = [sorted(rng.sample(range(100), 3)) for _ in range(count)]
    return [
        Pair(
            f"Sort: {', '.join(map(str, rng.sample(numbers, 3)))}",
            chosen=", ".join(map(str, reversed(numbers))),
            rejected=", ".join(map(str, numbers)),
        )
        for numbers in lists
    ]


def example(renderer: Any, question: str, answer: str) -> types.Datum:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    model_input, weights = renderer.build_supervised_example(messages)
    tokens = model_input.to_ints()
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights[1:].tolist()},
    )


def as_data(renderer: Any, pairs: list[Pair]) -> list[types.Datum]:
    """Chosen and rejected answers by turns."""
    return [example(renderer, p.question, answer) for p in pairs for answer in (p.chosen, p.rejected)]


def answer_logprobs(data: list[types.Datum], logprobs: list[torch.Tensor]) -> torch.Tensor:
    """The log-probability of each whole answer, as (pairs, 2): chosen, rejected."""
    weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in data]
    return torch.stack([(w * p).sum() for w, p in zip(weights, logprobs, strict=True)]).view(-1, 2)


def scores(run: tinker.TrainingClient, data: list[types.Datum]) -> torch.Tensor:
    outputs = run.forward(data, "cross_entropy").result().loss_fn_outputs
    return answer_logprobs(data, [output["logprobs"].to_torch() for output in outputs])


def preferred(run: tinker.TrainingClient, data: list[types.Datum]) -> float:
    """The share of pairs of which the preferred answer is the likelier one."""
    chosen, rejected = scores(run, data).unbind(1)
    return float((chosen > rejected).float().mean())


def dpo_loss(reference: torch.Tensor) -> Any:
    """−log σ(β · how much more the run prefers the chosen answer than the reference did), a mean over pairs."""

    def loss(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        chosen, rejected = (answer_logprobs(data, logprobs) - reference).unbind(1)
        value = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        return value, {"dpo_loss": value.item(), "margin": (chosen - rejected).mean().item()}

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=16, help="at each step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()

    with tinker.ServiceClient() as service:
        run = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=0).result()
        tokenizer = run.get_tokenizer()
        renderer = get_renderer(recommended_renderer(arguments.base_model, tokenizer), tokenizer)
        held_back = as_data(renderer, make_pairs(50, seed=1000))
        batches = [as_data(renderer, make_pairs(arguments.pairs, seed=step)) for step in range(arguments.steps)]
        references = [scores(run, batch) for batch in batches]  # a run begins as its base model

        before = preferred(run, held_back)
        for step, (batch, reference) in enumerate(track(list(zip(batches, references, strict=True)), "training")):
            passed = run.forward_backward_custom(batch, dpo_loss(reference)).result()
            run.optim_step(types.AdamParams(learning_rate=arguments.learning_rate)).result()
            metrics = passed.metrics
            print(f"step {step + 1:3}  loss {metrics['dpo_loss']:.3f}  margin {metrics['margin']:6.2f} nats")
        print(f"held-back pairs, preferred answer likelier: {before:.0%} → {preferred(run, held_back):.0%}")


if __name__ == "__main__":
    main()
