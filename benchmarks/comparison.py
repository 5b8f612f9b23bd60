"""Two pieces of work measured in turn, so that both see the same machine, and what their ratio should be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from rich.console import Console
from rich.progress import track
from rich.table import Table

console = Console(stderr=True)


class Rated(Protocol):
    """A side of a comparison."""

    def warm_up(self) -> Any:
        """Run once, so that everything is loaded; a loss, where the sides have one."""
        ...

    def rate(self, threads: int) -> float:
        """Amount per second, in one round."""
        ...


@dataclass(frozen=True)
class Work:
    """Something to be timed: what it does, how much that is, and how often it is repeated in a round.

    `before` comes in front of each repeat and is not timed; `first` warms up where a whole run would take long.
    """

    amount: float
    run: Callable[[], Any]
    repeats: int = 1
    before: Callable[[], Any] = lambda: None
    first: Callable[[], Any] | None = None

    def warm_up(self) -> Any:
        """Run once."""
        return (self.first or self.run)()

    def rate(self, threads: int) -> float:
        """Amount per second at the median of the repeats."""
        import torch

        torch.set_num_threads(threads)  # a small batch of the engine leaves it at one
        seconds = []
        for _ in range(self.repeats):
            self.before()
            started = time.perf_counter()
            self.run()
            seconds.append(time.perf_counter() - started)
        return self.amount / median(seconds)


@dataclass(frozen=True)
class Comparison:
    """A figure: the engine's work and its baseline, and what their ratio should be.

    `notes` are measured beside them for information. With `same_loss` both sides return a loss, which must agree.
    """

    name: str
    unit: str
    ours: Rated
    baseline: Rated
    aim: float
    notes: Mapping[str, Rated] = field(default_factory=dict)
    same_loss: bool = False


def check_same_loss(name: str, ours: float, theirs: float) -> None:
    if not math.isclose(ours, theirs, rel_tol=1e-3):
        raise RuntimeError(f"{name}: the engine's loss is {ours}, the baseline's {theirs}; their speeds do not compare")


def compare(comparison: Comparison, rounds: int, threads: int) -> dict[str, Any]:
    """Measure a figure; the sides take turns to go first."""
    sides = {"ours": comparison.ours, "baseline": comparison.baseline}
    works = {**sides, **comparison.notes}
    first = {name: work.warm_up() for name, work in works.items()}
    if comparison.same_loss:
        check_same_loss(comparison.name, first["ours"], first["baseline"])
    rates: dict[str, list[float]] = {name: [] for name in works}
    for place in track(range(rounds), comparison.name, console=console):
        for name in list(works) if place % 2 == 0 else list(works)[::-1]:
            rates[name].append(works[name].rate(threads))
    ratios = [ours / baseline for ours, baseline in zip(rates["ours"], rates["baseline"], strict=True)]
    return {
        "unit": comparison.unit,
        **{side: round(median(rates[side]), 2) for side in sides},
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "aim": comparison.aim,
        "notes": {name: round(median(rates[name]), 2) for name in comparison.notes},
    }


def digits(value: float) -> str:
    """Without decimals, unless there is little before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show(title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """A table of what `compare` gave, with the aims."""
    table = Table("figure", "unit", "ours", "baseline", "ratio", "aim", title=title)
    for name, figure in figures.items():
        met = figure["ratio"] >= figure["aim"]
        ratio = f"[{'green' if met else 'red'}]{figure['ratio']:.2f}"
        table.add_row(
            name, figure["unit"], digits(figure["ours"]), digits(figure["baseline"]), ratio, f"≥ {figure['aim']}"
        )
        for note, value in figure["notes"].items():
            table.add_row(f"  {note}", figure["unit"], "", digits(value), "", "")
    console.print(table)
