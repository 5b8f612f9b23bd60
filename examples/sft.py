"""Supervised fine-tuning on a file of conversations.

    mint run examples/sft.py
    mint run examples/sft.py --data mine.jsonl --base-model Qwen/Qwen3-0.6B

Each line of the file is `{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}`. All
of the assistant's messages are trained. A tenth of the file is held back: what the model says there is the measure.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from rich import print
from rich.progress import track

import mint as tinker
from mint import types
from mint.renderers import TrainOnWhat, get_renderer, recommended_renderer

Messages = list[dict[str, Any]]


def load(path: Path) -> tuple[list[Messages], list[Messages]]:
    """Conversations to train on, and a tenth that is held back."""
    conversations = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    random.Random(0).shuffle(conversations)
    held_back = max(1, len(conversations) // 10)
    return conversations[held_back:], conversations[:held_back]


def example(renderer: Any, messages: Messages) -> types.Datum:
    """Position i predicts token i + 1; the assistant's tokens count."""
    model_input, weights = renderer.build_supervised_example(messages, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    tokens = model_input.to_ints()
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights[1:].tolist()},
    )


def loss_per_token(output: types.ForwardBackwardOutput, data: list[types.Datum]) -> float:
    """Mean negative log-likelihood of the assistant's tokens, in nats."""
    return float(output.metrics["loss:sum"] / sum(sum(datum.loss_fn_inputs["weights"].data) for datum in data))


def accuracy(sampler: tinker.SamplingClient, renderer: Any, conversations: list[Messages]) -> float:
    """The share of last answers that come out word for word, at temperature 0."""
    params = types.SamplingParams(max_tokens=48, temperature=0.0, stop=renderer.get_stop_sequences())
    prompts = [renderer.build_generation_prompt(messages[:-1]) for messages in conversations]
    futures = [sampler.sample(prompt, num_samples=1, sampling_params=params) for prompt in prompts]
    answers = [renderer.parse_response(future.result().sequences[0].tokens)[0]["content"] for future in futures]
    right: list[bool] = [a == messages[-1]["content"] for a, messages in zip(answers, conversations, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data" / "conversations.jsonl")
    parser.add_argument("--base-model", default="mint/tiny")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    conversations, held_back = load(arguments.data)

    with tinker.ServiceClient() as service:
        run = service.create_lora_training_client(base_model=arguments.base_model, rank=16, seed=0).result()
        tokenizer = run.get_tokenizer()
        renderer = get_renderer(recommended_renderer(arguments.base_model, tokenizer), tokenizer)
        train, test = ([example(renderer, each) for each in part] for part in (conversations, held_back))

        loss_before = loss_per_token(run.forward(test, "cross_entropy").result(), test)
        right_before = accuracy(run.save_weights_and_get_sampling_client().result(), renderer, held_back)
        steps = arguments.epochs * len(train) // arguments.batch_size
        for step in track(range(steps), "training"):
            batch = random.Random(step).sample(train, arguments.batch_size)
            rate = arguments.learning_rate * (1 - step / steps)
            passed = run.forward_backward(batch, "cross_entropy")
            stepped = run.optim_step(types.AdamParams(learning_rate=rate))
            print(f"step {step + 1:3}  loss {loss_per_token(passed.result(), batch):.3f}")
            stepped.result()

        loss_after = loss_per_token(run.forward(test, "cross_entropy").result(), test)
        right_after = accuracy(run.save_weights_and_get_sampling_client().result(), renderer, held_back)
        print(f"held back: loss {loss_before:.2f} → {loss_after:.2f}, accuracy {right_before:.0%} → {right_after:.0%}")
        print("to train on: ", run.save_state("sft").result().path)
        print("to sample:   ", run.save_weights_for_sampler("sft").result().path)


if __name__ == "__main__":
    main()
