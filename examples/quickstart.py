"""Teach a small model to name the largest of some numbers: first from examples, then from a reward.

An ordinary Tinker program: nothing in it knows that the server is MinT, but for the import. Run it with
`make quickstart`, or against a running server with `python examples/quickstart.py`.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import mint as tinker
from mint import types

mpl.use("Agg")
from matplotlib import pyplot as plt

SFT_STEPS, SFT_BATCH, SFT_LEARNING_RATE = 12, 24, 2e-3
RL_STEPS, RL_PROMPTS, RL_GROUP, RL_LEARNING_RATE = 50, 16, 8, 1e-3
HELD_BACK = 80

console = Console()


@dataclass(frozen=True)
class Question:
    """A list of numbers; the right answer is the largest of them."""

    numbers: tuple[int, ...]

    @property
    def text(self) -> str:
        return f"What is the largest of {', '.join(map(str, self.numbers))}?"

    @property
    def answer(self) -> str:
        return str(max(self.numbers))


def make_questions(count: int, seed: int) -> list[Question]:
    rng = random.Random(seed)
    return [Question(tuple(rng.sample(range(100), rng.randint(3, 6)))) for _ in range(count)]


@dataclass
class Student:
    """The run being trained, and what is measured on the way."""

    run: tinker.TrainingClient
    tokenizer: Any
    losses: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def prompt(self, question: Question) -> list[int]:
        messages = [{"role": "user", "content": question.text}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(text))

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def sampler(self) -> tinker.SamplingClient:
        """A sampler of the weights as they are now."""
        return self.run.save_weights_and_get_sampling_client().result()

    def answers(self, questions: list[Question]) -> list[str]:
        """The likeliest answer to each question."""
        sampler = self.sampler()
        greedy = types.SamplingParams(max_tokens=12, temperature=0.0)
        prompts = [types.ModelInput.from_ints(self.prompt(question)) for question in questions]
        futures = [sampler.sample(prompt, num_samples=1, sampling_params=greedy) for prompt in prompts]
        return [self.decode(future.result().sequences[0].tokens) for future in futures]

    # --- supervised fine-tuning -------------------------------------------------------------------------------

    def example(self, question: Question) -> types.Datum:
        """Position i predicts token i + 1; only the answer's tokens count."""
        prompt = self.prompt(question)
        answer = self.tokenizer.encode(f"{question.answer}<|im_end|>")
        tokens = [*prompt, *answer]
        weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
        return types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
                "weights": types.TensorData(data=weights, dtype="float32", shape=[len(weights)]),
            },
        )

    def sft_step(self, questions: list[Question]) -> None:
        data = [self.example(question) for question in questions]
        passed = self.run.forward_backward(data, "cross_entropy")
        stepped = self.run.optim_step(types.AdamParams(learning_rate=SFT_LEARNING_RATE))
        num_answer_tokens = sum(sum(datum.loss_fn_inputs["weights"].data) for datum in data)
        self.losses.append(passed.result().metrics["loss:sum"] / num_answer_tokens)
        stepped.result()

    # --- reinforcement learning -------------------------------------------------------------------------------

    def rl_step(self, questions: list[Question]) -> None:
        """Sample a group of answers to each question; those better than their group's mean become likelier."""
        sampler = self.sampler()
        params = types.SamplingParams(max_tokens=12, temperature=1.0)
        prompts = [self.prompt(question) for question in questions]
        futures = [
            sampler.sample(types.ModelInput.from_ints(prompt), num_samples=RL_GROUP, sampling_params=params)
            for prompt in prompts
        ]
        data, rewards = [], []
        for question, prompt, future in zip(questions, prompts, futures, strict=True):
            group = future.result().sequences
            scores = [float(self.decode(sample.tokens) == question.answer) for sample in group]
            rewards += scores
            for sample, score in zip(group, scores, strict=True):
                if score != mean(scores):
                    data.append(policy_datum(prompt, sample, score - mean(scores)))
        self.rewards.append(mean(rewards))
        if data:
            passed = self.run.forward_backward(data, "importance_sampling")
            stepped = self.run.optim_step(types.AdamParams(learning_rate=RL_LEARNING_RATE))
            passed.result()
            stepped.result()


def policy_datum(prompt: list[int], sample: types.SampledSequence, advantage: float) -> types.Datum:
    """A sampled answer with the log-probabilities it was drawn with; the prompt's positions have advantage 0."""
    assert sample.logprobs is not None
    tokens = [*prompt, *sample.tokens]
    before = [0.0] * (len(prompt) - 1)
    inputs = {
        "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
        "logprobs": types.TensorData(data=before + list(sample.logprobs), dtype="float32", shape=[len(tokens) - 1]),
        "advantages": types.TensorData(
            data=before + [advantage] * len(sample.tokens), dtype="float32", shape=[len(tokens) - 1]
        ),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def train(student: Student, questions: list[Question]) -> dict[str, list[str]]:
    """SFT, then RL, each with a bar that shows what is being improved; the answers before, between and after."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[value]}"),
    )
    answers = {"before": student.answers(questions)}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("SFT", total=SFT_STEPS, value="")
        for step in range(SFT_STEPS):
            student.sft_step(make_questions(SFT_BATCH, seed=1000 + step))
            loss = student.losses[-1]
            progress.update(task, advance=1, value=f"loss {student.losses[0]:.2f} → {loss:.2f} nats per token")
        answers["after SFT"] = student.answers(questions)
        task = progress.add_task("RL ", total=RL_STEPS, value="")
        for step in range(RL_STEPS):
            student.rl_step(make_questions(RL_PROMPTS, seed=2000 + step))
            recent = mean(student.rewards[-5:])
            progress.update(task, advance=1, value=f"mean reward {student.rewards[0]:.2f} → {recent:.2f}")
    answers["after RL"] = student.answers(questions)
    return answers


def show_answers(questions: list[Question], answers: dict[str, list[str]]) -> None:
    """A few answers side by side, and the accuracy on all held-back questions."""
    table = Table(title="held-back questions", title_justify="left")
    for heading in ("the largest of", "right", *answers):
        table.add_column(heading)
    for place, question in enumerate(questions[:6]):
        cells = [column[place][:24] for column in answers.values()]
        table.add_row(", ".join(map(str, question.numbers)), question.answer, *cells)
    console.print(table)
    for name, column in answers.items():
        right = sum(answer == question.answer for answer, question in zip(column, questions, strict=True))
        console.print(f"  accuracy {name:<10} {right / len(questions):4.0%}  ({right} of {len(questions)})")


def draw_curves(student: Student, path: Path) -> None:
    """Loss of SFT and mean reward of RL, by step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(range(1, len(student.losses) + 1), student.losses, color="tab:blue")
    left.set(title="SFT: loss", xlabel="step", ylabel="nats per answer token", ylim=(0, None))
    steps = range(1, len(student.rewards) + 1)
    smooth = [mean(student.rewards[max(0, i - 5) : i]) for i in steps]
    right.plot(steps, student.rewards, color="tab:green", alpha=0.35, label="of each step")
    right.plot(steps, smooth, color="tab:green", label="mean of 5 steps")
    right.set(title="RL: mean reward", xlabel="step", ylabel="share of right answers", ylim=(0, 1))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--picture", type=Path, default=Path("out/quickstart.png"))
    arguments = parser.parse_args()

    questions = make_questions(HELD_BACK, seed=0)
    with tinker.ServiceClient() as service:
        run = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=0).result()
        student = Student(run, run.get_tokenizer())
        show_answers(questions, train(student, questions))
    draw_curves(student, arguments.picture)
    console.print(f"\nThe curves of loss and reward are in {arguments.picture}")


if __name__ == "__main__":
    main()
