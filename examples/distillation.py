"""Distillation on policy: a student learns from a teacher what to make of the student's own answers.

    mint run examples/distillation.py
    mint run examples/distillation.py --teacher tinker://…/weights/…

The teacher is a checkpoint on the same base model; without one, a small one is trained first. The student answers,
and the server draws it towards the teacher at each token of that answer: KL(student ‖ teacher) over the whole
vocabulary, in one call. No reward and no right answers are needed, and the teacher's log-probabilities never leave
the server.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from rich import print
from rich.progress import track

import mint as tinker
import mint.mint as mintx
from mint import types
from mint.renderers import get_renderer, recommended_renderer

Questions = list[tuple[str, str]]


def make_questions(count: int, seed: int) -> Questions:
    rng = random.Random(seed)
    lists = [rng.sample(range(100), rng.randint(3, 5)) for _ in range(count)]
    return [(f"What is the largest of {', '.join(map(str, numbers))}?", str(max(numbers))) for numbers in lists]


def train_teacher(run: tinker.TrainingClient, renderer: Any, steps: int) -> str:
    """A teacher by supervised fine-tuning; the path of its checkpoint."""
    for step in track(range(steps), "teacher"):
        data = []
        for question, right in make_questions(24, seed=step):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": right}]
            model_input, weights = renderer.build_supervised_example(messages)
            tokens = model_input.to_ints()
            inputs = {"target_tokens": tokens[1:], "weights": weights[1:].tolist()}
            data.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
        passed = run.forward_backward(data, "cross_entropy")
        stepped = run.optim_step(types.AdamParams(learning_rate=2e-3))
        passed.result()
        stepped.result()
    return str(run.save_state("teacher").result().path)


def sample(
    sampler: tinker.SamplingClient, renderer: Any, questions: Questions, temperature: float
) -> list[tuple[list[int], list[int]]]:
    """Prompt and tokens of an answer to each question."""
    params = types.SamplingParams(max_tokens=12, temperature=temperature, stop=renderer.get_stop_sequences())
    prompts = [renderer.build_generation_prompt([{"role": "user", "content": question}]) for question, _ in questions]
    futures = [sampler.sample(prompt, num_samples=1, sampling_params=params) for prompt in prompts]
    return [(p.to_ints(), future.result().sequences[0].tokens) for p, future in zip(prompts, futures, strict=True)]


def accuracy(run: tinker.TrainingClient, renderer: Any, questions: Questions) -> float:
    answers = sample(run.save_weights_and_get_sampling_client().result(), renderer, questions, temperature=0.0)
    said: list[str] = [renderer.parse_response(tokens)[0]["content"].strip() for _, tokens in answers]
    return sum(text == right for text, (_, right) in zip(said, questions, strict=True)) / len(questions)


def distil(run: tinker.TrainingClient, renderer: Any, teacher: str, questions: Questions) -> float:
    """One step. Returns KL(student ‖ teacher) in nats per token."""
    answers = sample(run.save_weights_and_get_sampling_client().result(), renderer, questions, temperature=1.0)
    num_tokens = sum(len(answer) for _, answer in answers)
    data = [
        mintx.ReverseKLDatum(
            student_input=[*prompt, *answer[:-1]],
            reference_input=[*prompt, *answer[:-1]],  # could begin otherwise: with a hint, say
            target_tokens=answer,
        )
        for prompt, answer in answers
    ]
    passed = mintx.forward_backward_reverse_kl(run, data, reference_model_path=teacher)
    stepped = run.optim_step(types.AdamParams(learning_rate=2e-3))
    divergences = passed.result().losses
    stepped.result()
    return sum(divergences) / num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--teacher", help="path of a checkpoint; one is trained otherwise")
    parser.add_argument("--teacher-steps", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    test = make_questions(80, seed=1000)

    with tinker.ServiceClient() as service:
        student = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=0).result()
        tokenizer = student.get_tokenizer()
        renderer = get_renderer(recommended_renderer(arguments.base_model, tokenizer), tokenizer)
        path = arguments.teacher
        if path is None:
            teacher = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=1).result()
            path = train_teacher(teacher, renderer, arguments.teacher_steps)
            print(f"accuracy of the teacher: {accuracy(teacher, renderer, test):.0%}")

        before = accuracy(student, renderer, test)
        for step in track(range(arguments.steps), "student"):
            divergence = distil(student, renderer, path, make_questions(24, seed=2000 + step))
            print(f"step {step + 1:3}  KL(student ‖ teacher) {divergence:.3f} nats per token")
        print(f"accuracy of the student: {before:.0%} → {accuracy(student, renderer, test):.0%}")


if __name__ == "__main__":
    main()
