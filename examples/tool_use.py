"""Reinforcement learning over several turns, with a tool.

    mint run examples/tool_use.py

What something costs today, no model knows: it has to ask the shop, read what comes back, and say it. A few worked
conversations show how one asks; from then on the reward is whether the last answer is right. `Conversation` keeps the
tokens of all turns, so that what is trained is what was sampled, and each turn is computed once.
"""

from __future__ import annotations

import argparse
import random
import re
from statistics import mean
from typing import Any

from rich import print
from rich.progress import track

import mint as tinker
from mint import types
from mint.renderers import (
    Conversation,
    Message,
    TrainOnWhat,
    get_renderer,
    get_text_content,
    recommended_renderer,
)

TURNS = 2
THINGS = ["apple", "book", "hat", "key", "shoe"]


def datum(tokens: list[int], **inputs: list[float]) -> types.Datum:
    """Position i predicts token i + 1; the inputs are one number for each token."""
    shifted: dict[str, Any] = {name: values[1:] for name, values in inputs.items()}
    shifted["target_tokens"] = tokens[1:]
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=shifted)


class Episode:
    """A conversation about today's prices, between a customer, the model and the shop. The seed makes the day."""

    def __init__(self, renderer: Any, seed: int) -> None:
        rng = random.Random(seed)
        self.prices = {thing: str(rng.randint(10, 99)) for thing in THINGS}
        self.thing = rng.choice(THINGS)
        question = Message(role="user", content=f"What does the {self.thing} cost?")
        self.conversation = Conversation(renderer, [question])
        self.logprobs = [0.0] * len(self.conversation.tokens)
        self.reward: float | None = None

    def take(self, sample: types.SampledSequence) -> None:
        """Read what the model said: a call of the tool goes on, anything else is its last word."""
        said = get_text_content(self.conversation.add_sampled(sample.tokens)[0]).strip()
        self.logprobs += sample.logprobs or []
        asked = re.fullmatch(r"ask (\w+)", said)
        if not asked:
            self.reward = float(said == self.prices[self.thing])
            return
        self.conversation.add(Message(role="tool", content=self.prices.get(asked[1], "unknown")))
        self.logprobs += [0.0] * (len(self.conversation.tokens) - len(self.logprobs))

    def as_datum(self, advantage: float) -> types.Datum:
        tokens, sampled = self.conversation.tokens, self.conversation.weights
        return datum(tokens, logprobs=self.logprobs, advantages=[advantage * weight for weight in sampled])


def worked_example(renderer: Any, seed: int) -> types.Datum:
    """How it is done."""
    episode = Episode(renderer, seed)
    price = episode.prices[episode.thing]
    said = [("assistant", f"ask {episode.thing}"), ("tool", price), ("assistant", price)]
    messages = [*episode.conversation.messages, *(Message(role=role, content=content) for role, content in said)]
    model_input, weights = renderer.build_supervised_example(messages, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    return datum(model_input.to_ints(), weights=weights.tolist())


def play(run: tinker.TrainingClient, renderer: Any, seeds: list[int], group: int) -> list[list[Episode]]:
    """A group of episodes for each seed, all at once, turn by turn."""
    sampler = run.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=12, stop=renderer.get_stop_sequences())
    groups = [[Episode(renderer, seed) for _ in range(group)] for seed in seeds]
    for _ in range(TURNS):
        going_on = [episode for episodes in groups for episode in episodes if episode.reward is None]
        futures = [sampler.sample(each.conversation.prompt, num_samples=1, sampling_params=params) for each in going_on]
        for episode, future in zip(going_on, futures, strict=True):
            episode.take(future.result().sequences[0])
    return groups


def step(run: tinker.TrainingClient, data: list[types.Datum], loss_fn: Any, learning_rate: float) -> None:
    passed = run.forward_backward(data, loss_fn)
    stepped = run.optim_step(types.AdamParams(learning_rate=learning_rate))
    passed.result()
    stepped.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--warm-up", type=int, default=14, help="steps of worked examples")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=8, help="at each step")
    parser.add_argument("--group", type=int, default=6, help="episodes of each task")
    arguments = parser.parse_args()

    with tinker.ServiceClient() as service:
        run = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=0).result()
        tokenizer = run.get_tokenizer()
        renderer = get_renderer(recommended_renderer(arguments.base_model, tokenizer), tokenizer)
        for number in track(range(arguments.warm_up), "warm-up"):
            step(run, [worked_example(renderer, 16 * number + i) for i in range(16)], "cross_entropy", 3e-3)

        rewards = []
        for number in track(range(arguments.steps), "training"):
            seeds = [1000 + arguments.tasks * number + i for i in range(arguments.tasks)]
            groups = play(run, renderer, seeds, arguments.group)
            scored = [[(episode, episode.reward or 0.0) for episode in group] for group in groups]
            means = [mean(reward for _, reward in group) for group in scored]
            data = [e.as_datum(r - m) for group, m in zip(scored, means, strict=True) for e, r in group if r != m]
            if data:
                step(run, data, "importance_sampling", 2e-3)
            rewards.append(mean(means))
            print(f"step {number + 1:3}  right answers {rewards[-1]:4.0%}")
        print(f"right answers: {mean(rewards[:3]):.0%} → {mean(rewards[-3:]):.0%}")


if __name__ == "__main__":
    main()
