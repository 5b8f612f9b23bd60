"""Programs whose server is killed, and what it costs to be ready for that.

    python -m benchmarks.reliability [--only kills,cost] [--kills 100] [--seed 0] [--rounds 4] [--out FILE]

  kills   SFT and RL programs of the unmodified `tinker` SDK train again and again, while kill -9 hits the worker or the
          server at random moments. Every loss and every count of steps is compared with an undisturbed program's.
  cost    training throughput at 16×256 tokens on small-qwen3 with journal and snapshots, without snapshots, and of the
          engine alone; the time that an optimizer step's round trip spends in the database.

Prints tables and one JSON object. Exits with 1 if a step was lost or doubled, a client saw an error, or a curve is
another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(stderr=True)


def show_kills(found: dict[str, Any]) -> None:
    table = Table("", "figure", "aim", title=f"{found['kills']} × kill -9 ({found['by_target']})")
    for name, aim in (
        ("programs", ""),
        ("steps", ""),
        ("client_errors", "0"),
        ("lost_or_doubled_steps", "0"),
        ("largest_loss_difference", "≤ 1e-05"),
        ("different_samples", "0"),
    ):
        table.add_row(name.replace("_", " "), str(found[name]), aim)
    for target, times in found["resume_s"].items():
        table.add_row(
            f"until a result comes after a {target}'s death, p50 / p95", f"{times['p50']} / {times['p95']} s", ""
        )
    console.print(table)


def show_cost(found: dict[str, Any]) -> None:
    table = Table("", "figure", "aim", title="what it costs to lose nothing (16×256 tokens, small-qwen3)")
    for name, rate in found["tokens_per_s"].items():
        table.add_row(f"tokens/s, {name}", str(rate), "")
    table.add_row("snapshots take of the throughput", f"{found['snapshots_share']:.1%}", "")
    table.add_row("all but the engine takes of it", f"{found['server_share']:.1%}", "≤ 5 %")
    table.add_row("in the database, of an optim_step, p50", f"{found['journal_ms']} ms", "≤ 3 ms")
    table.add_row("round trip of an optim_step, p50", f"{found['optim_step_ms']} ms", "")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="kills,cost")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    wanted = set(arguments.only.split(","))
    if not wanted <= {"kills", "cost"}:
        parser.error("--only: kills, cost")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        if "kills" in wanted:
            from benchmarks.kills import measure_kills

            result["kills"] = measure_kills(Path(name), arguments.kills, arguments.seed)
            show_kills(result["kills"])
        if "cost" in wanted:
            from benchmarks.durability_cost import measure_cost

            result["cost"] = measure_cost(Path(name), arguments.rounds)
            show_cost(result["cost"])
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.exit(0 if result.get("kills", {}).get("all_as_undisturbed", True) else 1)


if __name__ == "__main__":
    main()
