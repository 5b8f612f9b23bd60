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
from typing import Any, NamedTuple

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


class Task(NamedTuple):
    """A thing, and today's prices."""

    thing: str
    prices: dict[str, int]

    @property
    def question(self) -> Message:
        return {"role": "user", "content": f"What does the {self.thing} cost?"}

    @property
    def answer(self) -> str:
        return str(self.prices[self.thing])

    def call_tool(self, said: str) -> str | None:
        """What the shop says; None if it was not asked."""
        asked = re.fullmatch(r"ask (\w+)", said.strip())
        return str(self.prices.get(asked[1], "unknown")) if asked else None


def make_tasks(count: int, seed: int) -> list[Task]:
    rng = random.Random(seed)
    return [Task(rng.choice(THINGS), {thing: rng.randint(10, 99) for thing in THINGS}) for _ in range(count)]


def datum(tokens: list[int], **inputs: list[float]) -> types.Datum:
    """Position i predicts token i + 1; the inputs are one number for each token."""
    shifted: dict[str, Any] = {name: values[1:] for name, values in inputs.items()}
    shifted["target_tokens"] = tokens[1:]
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=shifted)


def worked_example(renderer: Any, task: Task) -> types.Datum:
    said = [("assistant", f"ask {task.thing}"), ("tool", task.answer), ("assistant", task.answer)]
    messages = [task.question, *({"role": role, "content": content} for role, content in said)]
    model_input, weights = renderer.build_supervised_example(messages, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    return datum(model_input.to_ints(), weights=weights.tolist())


class Episode:
    """One conversation between the model and its tool."""

    def __init__(self, renderer: Any, task: Task) -> None:
        self.task = task
        self.conversation = Conversation(renderer, [task.question])
        self.logprobs = [0.0] * len(self.conversation.tokens)
        self.reward: float | None = None

    def take(self, sample: types.SampledSequence) -> None:
        """Read an answer: a call of the tool goes on, anything else is the last word."""
        said = get_text_content(self.conversation.add_sampled(sample.tokens)[0])
        self.logprobs += sample.logprobs or []
        result = self.task.call_tool(said)
        if result is None:
            self.reward = float(said.strip() == self.task.answer)
            return
        self.conversation.add({"role": "tool", "content": result})
        self.logprobs += [0.0] * (len(self.conversation.tokens) - len(self.logprobs))

    def as_datum(self, advantage: float) -> types.Datum:
        tokens, sampled = self.conversation.tokens, self.conversation.weights
        return datum(tokens, logprobs=self.logprobs, advantages=[advantage * weight for weight in sampled])


def play(run: tinker.TrainingClient, renderer: Any, tasks: list[Task], group: int) -> list[list[Episode]]:
    """A group of episodes for each task, all at once, turn by turn."""
    sampler = run.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=12, stop=renderer.get_stop_sequences())
    groups = [[Episode(renderer, task) for _ in range(group)] for task in tasks]
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
            step(run, [worked_example(renderer, task) for task in make_tasks(16, number)], "cross_entropy", 3e-3)

        rewards = []
        for number in track(range(arguments.steps), "training"):
            groups = play(run, renderer, make_tasks(arguments.tasks, 1000 + number), arguments.group)
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
