"""Two short trainings of mint/tiny whose curves are kept in curves.json.

    python -m tests.golden.curves        # record them again, after a change that is meant to move them

A change that should not move numbers must not move these. Everything is seeded, samples too.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import torch
from transformers import AutoTokenizer

from mint.engine.core import (
    AdamParams,
    CreateRun,
    Datum,
    ExportRevision,
    ForwardBackward,
    LoraShape,
    OptimStep,
    Revision,
    Sample,
    SamplingParams,
)
from mint.tiny import model_path
from tests.engine.conftest import EngineDriver, make_driver

FILE = Path(__file__).with_name("curves.json")
SFT_STEPS, RL_STEPS = 12, 6
END = "<|im_end|>"


class Golden:
    """One run that is trained by SFT and then by RL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver: EngineDriver = make_driver(model_path())
        self.tokenizer = AutoTokenizer.from_pretrained(model_path())
        self.rng = Random(0)
        self.driver.one(CreateRun("run", LoraShape(rank=8, seed=0)))

    def prompt(self, question: str) -> list[int]:
        return self.tokenizer.encode(f"<|im_start|>user\n{question}{END}\n<|im_start|>assistant\n")

    def step(self, data: list[Datum], loss_fn: str, learning_rate: float) -> float:
        passed = self.driver.one(ForwardBackward("run", tuple(data), loss_fn))
        self.driver.one(OptimStep("run", AdamParams(learning_rate=learning_rate)))
        return passed.metrics["loss:sum"]

    def sft_step(self) -> float:
        """The loss of sixteen questions with their answers."""
        data = []
        for question, answer in [question_and_answer(self.rng) for _ in range(16)]:
            prompt, reply = self.prompt(question), self.tokenizer.encode(answer + END)
            weights = [0.0] * (len(prompt) - 1) + [1.0] * len(reply)
            data.append(datum(prompt + reply, weights=weights))
        return self.step(data, "cross_entropy", 2e-3)

    def rl_step(self, number: int) -> tuple[float, float]:
        """Mean reward of eight samples each of eight questions, and the loss of a second, off-policy step on them."""
        folder = self.folder / str(number)
        folder.mkdir()
        self.driver.one(ExportRevision("run", folder, key=str(folder)))
        asked = [question_and_answer(self.rng) for _ in range(8)]
        results = self.driver.together(
            Sample(
                Revision(str(folder), folder),
                np.array(self.prompt(question), np.int32),
                num_samples=8,
                params=SamplingParams(max_tokens=6, seed=100 * number + place, stop_token_ids=frozenset({2})),
            )
            for place, (question, _) in enumerate(asked)
        )
        data, rewards = [], []
        for (question, answer), result in zip(asked, results, strict=True):
            scores = [float(self.tokenizer.decode(s.tokens) == answer + END) for s in result.sequences]
            rewards += scores
            for sample, score in zip(result.sequences, scores, strict=True):
                before = [0.0] * (len(self.prompt(question)) - 1)
                advantage = score - float(np.mean(scores))
                data.append(
                    datum(
                        self.prompt(question) + sample.tokens.tolist(),
                        weights=[1.0] * (len(before) + len(sample.tokens)),
                        logprobs=before + sample.logprobs.tolist(),
                        advantages=before + [advantage] * len(sample.tokens),
                    )
                )
        self.step(data, "importance_sampling", 1e-3)
        return float(np.mean(rewards)), self.step(data, "importance_sampling", 1e-3)


def question_and_answer(rng: Random) -> tuple[str, str]:
    numbers = rng.sample(range(100), 4)
    return f"What is the largest of {', '.join(map(str, numbers))}?", str(max(numbers))


def datum(tokens: list[int], **inputs: list[float]) -> Datum:
    targets = {"target_tokens": np.array(tokens[1:], np.int64)}
    return Datum(
        np.array(tokens[:-1], np.int32),
        targets | {name: np.array(values, np.float32) for name, values in inputs.items()},
    )


def compute(folder: Path) -> dict[str, list[float]]:
    """The curves: losses of SFT, mean rewards and losses of RL."""
    golden = Golden(folder)
    losses = [golden.sft_step() for _ in range(SFT_STEPS)]
    steps = [golden.rl_step(number) for number in range(RL_STEPS)]
    return {
        "sft_loss": losses,
        "rl_reward": [reward for reward, _ in steps],
        "rl_loss": [loss for _, loss in steps],
    }


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        FILE.write_text(json.dumps(compute(Path(name)), indent=1) + "\n")
