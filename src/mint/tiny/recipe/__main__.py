"""`python -m mint.tiny.recipe`: make the model, then measure it.

Only reads arguments and puts the parts in order.
"""

import argparse
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mint.tiny import model_path
from mint.tiny.recipe.evaluate import report
from mint.tiny.recipe.skills import BASE_SKILLS, LORA_SKILLS
from mint.tiny.recipe.tokenizer import train_tokenizer
from mint.tiny.recipe.train import Plan, Record, new_model, save, train


def main() -> None:
    """Train, save and evaluate as the arguments say."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    if not arguments.evaluate_only:
        _make(arguments.out, replace(Plan(), steps=arguments.steps, seed=arguments.seed), console)
    for title, skills in (("base skills", BASE_SKILLS), ("withheld skills, zero-shot", LORA_SKILLS)):
        table = Table("skill", "accuracy", title=title)
        for name, share in report(arguments.out, skills, arguments.questions).items():
            table.add_row(name, f"{share:.1%}")
        console.print(table)


def _make(folder: Path, plan: Plan, console: Console) -> None:
    console.print(f"plan {asdict(plan)}")
    tokenizer = train_tokenizer(plan.seed)
    model = new_model(tokenizer, plan.seed)
    console.print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary")
    save(model, tokenizer, folder)

    def checkpoint(record: Record) -> None:
        save(model, tokenizer, folder)
        console.print(f"saved {folder} after {record.steps} steps")

    console.print(json.dumps(asdict(train(model, tokenizer, plan, checkpoint))))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mint.tiny.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, default=model_path(), help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="training steps")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--questions", type=int, default=200, help="evaluation questions per skill")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the model in --out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
