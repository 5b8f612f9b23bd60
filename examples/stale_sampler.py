"""Sampling with weights that lag behind the training, and a correction for it.

    mint run examples/stale_sampler.py
    mint run examples/stale_sampler.py --no-correction

To save weights and load them into a sampler takes time, and a rollout may take longer than a step. So the sampler
here is renewed every few steps only. What it draws is then no longer what the run would draw: the run's rollout
correction weighs each sequence by how much likelier it has become, and drops those that have become too different.
"""

from __future__ import annotations

import argparse
import random
from statistics import mean
from typing import Any

from rich import print
from rich.progress import track

import mint as tinker
import mint.mint as mintx
from mint import types
from mint.renderers import get_renderer, recommended_renderer

CORRECTION = mintx.RolloutCorrectionConfig(
    rollout_is="sequence",  # weigh by the product over the sequence,
    rollout_is_threshold=2.0,  # at most this much,
    rollout_rs="seq_sum_k1",  # and keep sequences
    rollout_rs_threshold="0.1_10",  # whose product is in these bounds
    loss_type="reinforce",
)


def make_questions(count: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    lists = [rng.sample(range(10, 100), 3) for _ in range(count)]
    return [(f"What is the largest of {', '.join(map(str, numbers))}?", str(max(numbers))) for numbers in lists]


def rollouts(
    sampler: tinker.SamplingClient, renderer: Any, questions: list[tuple[str, str]], group: int
) -> tuple[list[types.Datum], float]:
    """Data for importance_sampling, and the mean reward."""
    params = types.SamplingParams(max_tokens=12, stop=renderer.get_stop_sequences())
    prompts = [renderer.build_generation_prompt([{"role": "user", "content": question}]) for question, _ in questions]
    futures = [sampler.sample(prompt, num_samples=group, sampling_params=params) for prompt in prompts]
    data, rewards = [], []
    for prompt, future, (_, right) in zip(prompts, futures, questions, strict=True):
        answers = future.result().sequences
        texts = [renderer.parse_response(answer.tokens)[0]["content"].strip() for answer in answers]
        scores = [float(text == right) for text in texts]
        rewards += scores
        before = [0.0] * (prompt.length - 1)
        for answer, score in zip(answers, scores, strict=True):
            tokens = [*prompt.to_ints(), *answer.tokens]
            inputs: dict[str, Any] = {
                "target_tokens": tokens[1:],
                "logprobs": [*before, *(answer.logprobs or [])],  # of the sampler, however old it is
                "advantages": [*before, *[score - mean(scores)] * len(answer.tokens)],
            }
            if score != mean(scores):
                data.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs))
    return data, mean(rewards)


def create_run(service: tinker.ServiceClient, base_model: str, corrected: bool) -> tinker.TrainingClient:
    """The correction belongs to the run; its passes need not name it."""
    if not corrected:
        return service.create_lora_training_client(base_model, rank=16, seed=0).result()
    return mintx.create_lora_training_client(
        service, base_model, rank=16, seed=0, rollout_correction_config=CORRECTION
    ).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lag", type=int, default=2, help="steps from one renewal of the sampler to the next")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--no-correction", action="store_true")
    arguments = parser.parse_args()

    with tinker.ServiceClient() as service:
        run = create_run(service, arguments.base_model, not arguments.no_correction)
        tokenizer = run.get_tokenizer()
        renderer = get_renderer(recommended_renderer(arguments.base_model, tokenizer), tokenizer)
        rewards = []
        for step in track(range(arguments.steps), "training"):
            if step % arguments.lag == 0:
                sampler = run.save_weights_and_get_sampling_client().result()
            data, reward = rollouts(sampler, renderer, make_questions(16, seed=step), group=8)
            rewards.append(reward)
            line = f"step {step + 1:3}  mean reward {reward:.2f}"
            if data:
                passed = run.forward_backward(data, "importance_sampling")
                stepped = run.optim_step(types.AdamParams(learning_rate=arguments.learning_rate))
                metrics = passed.result().metrics
                stepped.result()
                if not arguments.no_correction:
                    line += f"  kept {metrics['rollout_correction/kept_fraction:mean']:4.0%}"
                    line += f"  mean weight {metrics['rollout_correction/weight:mean']:.2f}"
            print(line)
        print(f"mean reward {mean(rewards[: arguments.lag]):.2f} → {mean(rewards[-arguments.lag :]):.2f}")


if __name__ == "__main__":
    main()
