"""A folder with what programs would fetch from the Hugging Face hub: a tokenizer, and data sets by their names.

`load_dataset("openai/gsm8k")` and the cookbook's `get_tokenizer` look for a folder of that name before they ask the
hub, so a program that runs here needs no change. The data are made for mint/tiny, in each data set's own format.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mint.tiny import model_path

MODEL = "Qwen/Qwen3-4B-Instruct-2507"
"""What mint/tiny is served as: a name for which the cookbook knows a renderer, of the model's own chat format."""

ROWS = 96


def make_hub(folder: Path) -> Path:
    """Write everything into `folder`."""
    shutil.copytree(model_path(), folder / MODEL)
    conversations = [{"messages": _messages(question, answer)} for question, answer in _largest(384, seed=0)]
    write(folder / "HuggingFaceH4/no_robots", train=conversations, test=conversations[:128])
    write(folder / "allenai/tulu-3-sft-mixture", train=conversations)
    write(folder / "openai/gsm8k", name="main", train=list(_gsm8k()), test=list(_gsm8k())[:16])
    write(folder / "Anthropic/hh-rlhf", train=list(_preferences()), test=list(_preferences())[:16])
    write(folder / "zwhe99/DeepMath-103K", train=[{"question": question} for question, _ in _largest(ROWS, seed=1)])
    thoughts = [{"conversations": _from_and_value(question, answer)} for question, answer in _largest(ROWS, seed=2)]
    write(folder / "open-thoughts/OpenThoughts3-1.2M", train=thoughts)
    write(folder / "hicai-zju/SciKnowEval", test=[_choice(question, answer) for question, answer in _largest(ROWS, 3)])
    text = "the cat sat on the mat and the dog ran to the man with the red hat in the sun . "
    write(folder / "Salesforce/wikitext", name="wikitext-103-raw-v1", train=[{"text": text * 4}] * 200)
    return folder


def write(folder: Path, *, name: str = "default", **splits: list[dict[str, Any]]) -> None:
    """A data set of one configuration, as JSON lines."""
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{files}---\n")


def _largest(count: int, seed: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(seed)
    for _ in range(count):
        numbers = rng.sample(range(100), 3)
        yield f"What is the largest of {', '.join(map(str, numbers))}?", str(max(numbers))


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _from_and_value(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _gsm8k() -> Iterator[dict[str, str]]:
    rng = random.Random(4)
    for _ in range(ROWS):
        a, b = rng.randrange(50), rng.randrange(50)
        yield {"question": f"What is {a} + {b}?", "answer": f"{a} and {b} are {a + b}.\n#### {a + b}"}


def _preferences() -> Iterator[dict[str, str]]:
    """Descending order is preferred."""
    rng = random.Random(5)
    for _ in range(ROWS):
        numbers = rng.sample(range(100), 3)
        asked = f"\n\nHuman: Sort: {', '.join(map(str, numbers))}\n\nAssistant: "
        up = sorted(numbers)
        yield {"chosen": asked + ", ".join(map(str, up[::-1])), "rejected": asked + ", ".join(map(str, up))}


def _choice(question: str, answer: str) -> dict[str, Any]:
    """A row of SciKnowEval: one of its multiple-choice questions at level L3."""
    return {
        "domain": "Chemistry",
        "details": {"level": "L3"},
        "type": "mcq-2-choices",
        "question": question,
        "choices": {"text": [answer, "none of them"], "label": ["A", "B"]},
        "answerKey": "A",
    }
