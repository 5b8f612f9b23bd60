"""What the programs that print comparisons have in common: their models and their command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.comparison import Comparison, compare, show
from benchmarks.in_process import InProcess, enter_worker_environment
from benchmarks.models import POLICY, SHAPES, SMALL, TINY, model_folder


class Bench:
    """The models in engines of this process, made and loaded when they are first asked for.

    `threads` is what the tensor library starts with. Small batches lower it, for the whole process.
    """

    def __init__(self, models: Path | None) -> None:
        import torch

        self.threads = torch.get_num_threads()
        self._models = models

    @cached_property
    def small_folder(self) -> Path:
        return model_folder(SMALL, self._models)

    @cached_property
    def policy_folder(self) -> Path:
        return model_folder(POLICY, self._models)

    @cached_property
    def small(self) -> InProcess:
        return InProcess.load(self.small_folder, self.threads)

    @cached_property
    def tiny(self) -> InProcess:
        return InProcess.load(model_folder(TINY, self._models), self.threads)

    @cached_property
    def policy(self) -> InProcess:
        return InProcess.load(self.policy_folder, self.threads)


Cases: TypeAlias = Mapping[str, Callable[[Bench], Iterator[Comparison]]]


def vocab_size(name: str) -> int:
    return int(SHAPES[name]["vocab_size"])


def measure(cases: Cases, rounds: int, models: Path | None) -> dict[str, Any]:
    bench = Bench(models)
    figures = {
        comparison.name: compare(comparison, rounds, bench.threads)
        for case in cases.values()
        for comparison in case(bench)
    }
    return {"torch": version("torch"), "threads": bench.threads, "rounds": rounds, "figures": figures}


def run_suite(description: str | None, title: str, cases: Cases, rounds: int) -> None:
    """Read the command line, measure, and print the table and the JSON object.

    Args:
        rounds: unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma list of cases; all by default")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--models", type=Path, help="where the random models are kept; the temporary directory by default"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(cases)
    if unknown := set(names) - set(cases):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    enter_worker_environment()
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    result = measure({name: cases[name] for name in names}, arguments.rounds, arguments.models)
    show(f"{title}, {result['threads']} threads, medians of {result['rounds']}", result["figures"])
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.stdout.flush()
