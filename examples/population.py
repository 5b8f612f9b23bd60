"""A population of adapters, trained at the same time on one server.

    mint run examples/population.py

Members differ in learning rate. They train side by side: the server computes their passes in common batches on one
base model. After each round the worst member goes on from the best one's checkpoint, with a learning rate near to
its. This is population-based training; a sweep, or one adapter for each customer, is the same program without the
last part.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import mint as tinker
from mint import types
from mint.renderers import get_renderer, recommended_renderer

LEARNING_RATES = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3]
console = Console(emoji=False)  # ids have colons in them


def make_data(renderer: Any, count: int, seed: int) -> list[types.Datum]:
    """Lists of numbers, to be said backwards."""
    rng, data = random.Random(seed), []
    for _ in range(count):
        numbers = [str(rng.randrange(100)) for _ in range(rng.randint(2, 4))]
        messages = [
            {"role": "user", "content": f"Reverse: {', '.join(numbers)}"},
            {"role": "assistant", "content": ", ".join(reversed(numbers))},
        ]
        model_input, weights = renderer.build_supervised_example(messages)
        tokens = model_input.to_ints()
        inputs = {"target_tokens": tokens[1:], "weights": weights[1:].tolist()}
        data.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    return data


def loss_per_token(output: types.ForwardBackwardOutput, data: list[types.Datum]) -> float:
    return float(output.metrics["loss:sum"] / sum(sum(datum.loss_fn_inputs["weights"].data) for datum in data))


@dataclass
class Member:
    """One adapter, and how it is doing."""

    name: str
    run: tinker.TrainingClient
    learning_rate: float
    loss: float = float("inf")

    async def train(self, batches: list[list[types.Datum]], test: list[types.Datum]) -> None:
        """Some steps, then the loss on what is held back. Steps are sent ahead; the server keeps their order."""
        futures: list[Any] = []
        for batch in batches:
            futures.append(self.run.forward_backward(batch, "cross_entropy"))
            futures.append(self.run.optim_step(types.AdamParams(learning_rate=self.learning_rate)))
        tested = self.run.forward(test, "cross_entropy")
        for future in futures:
            await future
        self.loss = loss_per_token(await tested, test)

    async def follow(self, better: Member, name: str, service: tinker.ServiceClient) -> None:
        """Go on from another's checkpoint, weights and optimizer."""
        saved = await better.run.save_state(name)
        self.run = await service.create_training_client_from_state_with_optimizer(saved.path)
        self.learning_rate = better.learning_rate * random.Random(name).choice([0.8, 1.25])


async def evolve(service: tinker.ServiceClient, members: list[Member], renderer: Any, rounds: int, steps: int) -> Table:
    test = make_data(renderer, 40, seed=1000)
    table = Table(
        "round", *(member.name for member in members), title="held-back loss, nats per token, at learning rate"
    )
    for number in range(1, rounds + 1):
        batches = [make_data(renderer, 16, seed=number * steps + step) for step in range(steps)]
        with console.status(f"round {number} of {rounds}"):
            await asyncio.gather(*(member.train(batches, test) for member in members))
        table.add_row(str(number), *(f"{each.loss:.2f} at {each.learning_rate:.0e}" for each in members))
        best, worst = min(members, key=lambda each: each.loss), max(members, key=lambda each: each.loss)
        if number < rounds:
            await worst.follow(best, f"round-{number}", service)
    return table


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="of each member in a round")
    arguments = parser.parse_args()

    with tinker.ServiceClient() as service:
        members = []
        for name, rate in zip("ABCDE", LEARNING_RATES, strict=True):
            run = await service.create_lora_training_client(arguments.base_model, rank=8, seed=0)
            members.append(Member(name, run, rate))
        tokenizer = members[0].run.get_tokenizer()
        renderer = get_renderer(recommended_renderer(arguments.base_model, tokenizer), tokenizer)
        console.print(await evolve(service, members, renderer, arguments.rounds, arguments.steps))
        best = min(members, key=lambda each: each.loss)
        console.print(f"best: {best.name}, held-back loss {best.loss:.2f}, {best.run.model_id}")


if __name__ == "__main__":
    asyncio.run(main())
