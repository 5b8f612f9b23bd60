"""`python -m mint.tiny_vla.recipe`: make the policy, then measure it.

Only reads arguments and puts the parts in order.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PaliGemmaForConditionalGeneration

from mint.openpi.prompts import PolicyTokens
from mint.openpi.statistics import load_statistics
from mint.tiny_vla import model_path
from mint.tiny_vla.recipe.policy import Policy, success
from mint.tiny_vla.recipe.tokens import policy_tokens, statistics
from mint.tiny_vla.recipe.train import Plan, new_model, save, train, widened


def main() -> None:
    """Train, save and evaluate as the arguments say."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    if not arguments.evaluate_only:
        _make(arguments.out, replace(Plan(), steps=arguments.steps, seed=arguments.seed), console)
    console.print(_report(load(arguments.out / "weights"), arguments.episodes))


def load(folder: Path) -> Policy:
    """A saved policy, in 32 bits."""
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    return Policy(model, PolicyTokens.load(folder), load_statistics(folder / "norm_stats.json"))


def _make(folder: Path, plan: Plan, console: Console) -> None:
    console.print(f"plan {asdict(plan)}")
    tokens = policy_tokens()
    policy = Policy(new_model(tokens, plan.seed), tokens, statistics())
    console.print(f"{policy.model.num_parameters():,} parameters")
    seconds = train(policy, plan, told=console.print)
    save(policy, folder / "weights")
    save(replace(policy, model=widened(policy.model)), folder / "weights_256")
    console.print(f"saved in {folder} after {seconds:.0f} s")


def _report(policy: Policy, episodes: int) -> Table:
    table = Table("arm", "images", "success, by seed", title=f"closed loop, {episodes} episodes")
    for mirrored in (False, True):
        for blind in (False, True):
            shares = [success(policy, seed, mirrored, episodes, blind) for seed in range(3)]
            table.add_row(
                "mirrored" if mirrored else "plain", "black" if blind else "seen", " ".join(f"{s:.0%}" for s in shares)
            )
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mint.tiny_vla.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, default=model_path().parent, help="folder to write both geometries to")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="training steps")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=1, help="with one, the same plan gives the same weights")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per measurement")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the policy in --out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
