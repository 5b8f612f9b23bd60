"""Many schedules, side by side in processes."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from tests.simulation.mutations import broken
from tests.simulation.schedule import Stage
from tests.simulation.world import Violation

CHUNK = 25
ENOUGH = 10
"""Failures after which no more are looked for; where a rule is broken, one is enough."""


@cache
def stage() -> Stage:
    """Of this process."""
    logging.getLogger("mint").propagate = False
    # coroutines of servers that were killed end where they are
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore", RuntimeWarning)
    return Stage(tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def play_some(seeds: range, rule: str | None) -> list[tuple[int, str]]:
    """Play some seeds; those that failed, and how."""
    failures = []
    with broken(rule):
        for seed in seeds:
            try:
                stage().play(seed)
            except Violation as violation:
                failures.append((seed, str(violation)))
                if rule is not None:
                    break
    return failures


def play_all(
    seeds: range, processes: int, rule: str | None = None, progress: Callable[[int], None] = lambda _: None
) -> list[tuple[int, str]]:
    """Play seeds; those that failed, and how. After some failures it ends early."""
    failures: list[tuple[int, str]] = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        parts = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
        under_way = {pool.submit(play_some, part, rule): len(part) for part in parts}
        for done in as_completed(under_way):
            failures += done.result()
            progress(under_way[done])
            if len(failures) >= (ENOUGH if rule is None else 1):
                pool.shutdown(cancel_futures=True)
                break
    return sorted(failures)
