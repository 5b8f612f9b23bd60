"""Reinforcement learning with a reward that a program can check: GRPO.

    mint run examples/grpo.py

At each step the model answers some questions several times. An answer's advantage is how much better it did than the
others to its question; nobody tells the model what the right answer would have been. To train something else, replace
`make_questions` and `reward`.
"""

from __future__ import annotations

import argparse
import random
from statistics import mean
from typing import Any

from rich import print
from rich.progress import track

import mint as tinker
from mint import types
from mint.renderers import get_renderer, recommended_renderer


def make_questions(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions and what is right."""
    rng = random.Random(seed)
    lists = [rng.sample(range(10, 100), 3) for _ in range(count)]
    return [(f"What is the largest of {', '.join(map(str, numbers))}?", str(max(numbers))) for numbers in lists]


def reward(answer: str, right: str) -> float:
    return float(answer == right)


def policy_datum(prompt: types.ModelInput, sample: types.SampledSequence, advantage: float) -> types.Datum:
    """A sampled answer, and the log-probabilities it was drawn with. The prompt's positions have advantage 0."""
    before = [0.0] * (prompt.length - 1)
    tokens = [*prompt.to_ints(), *sample.tokens]
    inputs: dict[str, Any] = {
        "target_tokens": tokens[1:],
        "logprobs": [*before, *(sample.logprobs or [])],
        "advantages": [*before, *[advantage] * len(sample.tokens)],
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


class Trainer:
    """A run, and how to talk with it."""

    def __init__(self, run: tinker.TrainingClient, base_model: str) -> None:
        self.run = run
        self.tokenizer = run.get_tokenizer()
        self.renderer: Any = get_renderer(recommended_renderer(base_model, self.tokenizer), self.tokenizer)
        self.params = types.SamplingParams(max_tokens=12, stop=self.renderer.get_stop_sequences())

    def sample(self, questions: list[tuple[str, str]], group: int) -> list[tuple[types.ModelInput, Any, list[float]]]:
        """For each question its prompt, a group of answers of the weights as they are now, and their rewards."""
        sampler = self.run.save_weights_and_get_sampling_client().result()
        prompts = [self.renderer.build_generation_prompt([{"role": "user", "content": q}]) for q, _ in questions]
        futures = [sampler.sample(prompt, num_samples=group, sampling_params=self.params) for prompt in prompts]
        rollouts = []
        for prompt, future, (_, right) in zip(prompts, futures, questions, strict=True):
            answers = future.result().sequences
            texts = [self.renderer.parse_response(answer.tokens)[0]["content"] for answer in answers]
            rollouts.append((prompt, answers, [reward(text.strip(), right) for text in texts]))
        return rollouts

    def step(self, questions: list[tuple[str, str]], group: int, learning_rate: float) -> float:
        """Sample, compare, improve. Returns the mean reward."""
        rollouts = self.sample(questions, group)
        data = [
            policy_datum(prompt, answer, score - mean(scores))
            for prompt, answers, scores in rollouts
            for answer, score in zip(answers, scores, strict=True)
            if score != mean(scores)  # a group in which all did the same teaches nothing
        ]
        if data:
            passed = self.run.forward_backward(data, "importance_sampling")
            stepped = self.run.optim_step(types.AdamParams(learning_rate=learning_rate))
            passed.result()
            stepped.result()
        return mean(score for *_, scores in rollouts for score in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--questions", type=int, default=16, help="at each step")
    parser.add_argument("--group", type=int, default=8, help="answers to each")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()

    with tinker.ServiceClient() as service:
        run = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=0).result()
        trainer, rewards = Trainer(run, arguments.base_model), []
        for step in track(range(arguments.steps), "training"):
            questions = make_questions(arguments.questions, seed=step)
            rewards.append(trainer.step(questions, arguments.group, arguments.learning_rate))
            print(f"step {step + 1:3}  mean reward {rewards[-1]:.2f}")
        print(f"mean reward {mean(rewards[:3]):.2f} → {mean(rewards[-3:]):.2f}")


if __name__ == "__main__":
    main()
