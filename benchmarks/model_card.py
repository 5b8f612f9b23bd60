"""What a one-minute LoRA teaches mint/tiny, skill by skill: the table in its model card.

    python -m benchmarks.model_card [--seconds 60] [--skills reverse,spell] [--write]

For each skill: accuracy on held-back questions, a minute of SFT through the service, accuracy again. With `--write` the
table goes into src/mint/tiny/MODEL_CARD.md between its markers.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track

import mint as tinker
from mint import types
from mint.cli.private_server import private_server
from mint.tiny import NAME, model_path
from mint.tiny.recipe.skills import BASE_SKILLS, LORA_SKILLS, Skill

CARD = model_path().parent / "MODEL_CARD.md"
MARKERS = re.compile(r"(<!-- one-minute LoRA -->\n).*?(<!-- end -->)", re.DOTALL)
BATCH, LEARNING_RATE, RANK, QUESTIONS = 32, 2e-3, 16, 200
console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """Accuracy of one skill before and after, and the optimizer steps in between."""

    skill: str
    withheld: bool
    before: float
    after: float
    steps: int


def prompt(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(text))


def example(tokenizer: Any, question: str, answer: str) -> types.Datum:
    head, reply = prompt(tokenizer, question), tokenizer.encode(f"{answer}<|im_end|>")
    tokens = [*head, *reply]
    weights = [0.0] * (len(head) - 1) + [1.0] * len(reply)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(weights)]),
            "weights": types.TensorData(data=weights, dtype="float32", shape=[len(weights)]),
        },
    )


def accuracy(run: tinker.TrainingClient, tokenizer: Any, skill: Skill) -> float:
    rng = Random(f"card:{skill.name}")
    asked = [skill.draw(rng, "eval") for _ in range(QUESTIONS)]
    sampler = run.save_weights_and_get_sampling_client().result()
    greedy = types.SamplingParams(max_tokens=64, temperature=0.0)
    futures = [
        sampler.sample(types.ModelInput.from_ints(prompt(tokenizer, question)), num_samples=1, sampling_params=greedy)
        for question, _ in asked
    ]
    given = [tokenizer.decode(f.result().sequences[0].tokens, skip_special_tokens=True) for f in futures]
    right: list[bool] = [text == answer for text, (_, answer) in zip(given, asked, strict=True)]
    return sum(right) / len(right)


def measure(service: tinker.ServiceClient, skill: Skill, seconds: float) -> Row:
    run = service.create_lora_training_client(base_model=NAME, rank=RANK, seed=0).result()
    tokenizer = run.get_tokenizer()
    before = accuracy(run, tokenizer, skill)
    rng, steps, started = Random(f"card-train:{skill.name}"), 0, time.monotonic()
    while (spent := time.monotonic() - started) < seconds:
        data = [example(tokenizer, *skill.draw(rng, "train")) for _ in range(BATCH)]
        rate = LEARNING_RATE * max(0.05, 1 - spent / seconds)
        passed = run.forward_backward(data, "cross_entropy")
        stepped = run.optim_step(types.AdamParams(learning_rate=rate))
        passed.result()
        stepped.result()
        steps += 1
    return Row(skill.name, skill in LORA_SKILLS, before, accuracy(run, tokenizer, skill), steps)


def as_table(rows: list[Row], seconds: float) -> str:
    lines = [
        f"Rank {RANK}, batches of {BATCH} questions, {seconds:g} s of training per skill on 2 cores; greedy exact",
        f"match on {QUESTIONS} held-back questions. Measured by `python -m benchmarks.model_card --write`.",
        "",
        "| skill | in pre-training | before | after | steps |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        taught = "no" if row.withheld else "yes"
        lines.append(f"| {row.skill} | {taught} | {row.before:.1%} | {row.after:.1%} | {row.steps} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--skills", help="comma list; all by default")
    parser.add_argument("--write", action="store_true", help="put the table into the model card")
    arguments = parser.parse_args()
    wanted = arguments.skills.split(",") if arguments.skills else None
    skills = [skill for skill in (*LORA_SKILLS, *BASE_SKILLS) if wanted is None or skill.name in wanted]
    with private_server() as server:
        service = tinker.ServiceClient(base_url=server.base_url, api_key=server.api_key)
        rows = [measure(service, skill, arguments.seconds) for skill in track(skills, "skills", console=console)]
    table = as_table(rows, arguments.seconds)
    print(table)
    if arguments.write:
        CARD.write_text(MARKERS.sub(lambda match: match[1] + table + match[2], CARD.read_text()))


if __name__ == "__main__":
    main()
