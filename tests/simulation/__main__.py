"""Play schedules.

    python -m tests.simulation [--schedules 10000] [--first 0] [--processes 2]
    python -m tests.simulation --seed N

The first form plays seeds one after the other and tells of those that fail; the second plays one and prints all that
happens in it. A seed is the same schedule wherever and whenever it is played.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from rich.console import Console
from rich.progress import Progress

from tests.simulation.mutations import RULES, broken
from tests.simulation.runner import play_all, stage
from tests.simulation.world import Violation

console = Console(stderr=True, highlight=False)


def show(seed: int, rule: str | None) -> int:
    """Play one and print what happens."""
    with broken(rule):
        try:
            world = stage().play(seed, traced=True)
        except Violation as violation:
            print("\n".join(violation.world.log))
            print(f"seed {seed}: {violation}")
            return 1
    print("\n".join(world.log))
    print(f"seed {seed}: all is as it must be")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="play this one and print its trace")
    parser.add_argument(
        "--break", dest="rule", choices=sorted(RULES), help="what to do wrong, to see that it is noticed"
    )
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names are gone through in an order of their own otherwise
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, sys.orig_argv)
    if arguments.seed is not None:
        sys.exit(show(arguments.seed, arguments.rule))
    started = time.monotonic()
    with Progress(console=console) as progress:
        bar = progress.add_task("schedules", total=arguments.schedules)
        failures = play_all(
            range(arguments.first, arguments.first + arguments.schedules),
            arguments.processes,
            arguments.rule,
            lambda count: progress.advance(bar, count),
        )
    seconds = time.monotonic() - started
    rate = 60 * arguments.schedules / seconds
    console.print(f"{arguments.schedules} schedules in {seconds:.1f} s, {rate:.0f} a minute; {len(failures)} failed")
    for seed, what in failures:
        print(f"seed {seed}: {what}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
