"""Greedy exact-match accuracy of a saved model, skill by skill, on questions it was never trained on.

Knows skills and a folder of weights.  Must not know how the weights came about.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from rich.progress import track
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from mint.tiny.recipe.corpus import prompt
from mint.tiny.recipe.skills import Skill

_LONGEST_ANSWER: Final = 64
_BATCH: Final = 64


def load(folder: Path) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Load a saved model for evaluation, in 32 bits."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def questions(skill: Skill, number: int, seed: int = 1) -> list[tuple[str, str]]:
    """Draw evaluation questions, the same ones for the same seed; small skills repeat some."""
    rng = Random(f"{seed}:{skill.name}:eval")
    return [skill.draw(rng, "eval") for _ in range(number)]


@torch.inference_mode()
def answers(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[str]) -> list[str]:
    """Answer each question greedily."""
    given: list[str] = []
    for start in range(0, len(asked), _BATCH):
        chunk = [prompt(question) for question in asked[start : start + _BATCH]]
        inputs = tokenizer(chunk, return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(  # type: ignore[misc]
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=_LONGEST_ANSWER,
        )
        given += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return given


def accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    skill: Skill,
    number: int = 200,
    seed: int = 1,
) -> float:
    """Return the share of questions answered exactly."""
    pairs = questions(skill, number, seed)
    given = answers(model, tokenizer, [question for question, _ in pairs])
    right = sum(answer == expected for answer, (_, expected) in zip(given, pairs, strict=True))
    return right / number


def report(folder: Path, skills: Sequence[Skill], number: int = 200) -> dict[str, float]:
    """Measure every skill."""
    model, tokenizer = load(folder)
    return {skill.name: accuracy(model, tokenizer, skill, number) for skill in track(skills, "evaluating")}
