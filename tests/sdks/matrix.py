"""`make sdk-matrix`: every program with every version of the SDK, against one server.

Prints a table; under it why a cell is empty, or what went wrong, in which case it ends with code 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from mint.cli.private_server import PrivateServer, private_server
from mint.tiny import NAME

from .environments import environment, newest, outside

VERSIONS = ("0.6.0", "0.15.0", "0.16.0", "0.22.0", "0.30.4", "0.38.0")
"""Those that people have: the first and the last are tested with every change."""

PROGRAMS = ("sessions", "training", "custom_loss", "checkpoints", "rest", "sampling", "download")
SECONDS = 300
SIGNS = {"ok": "[green]✓[/green]", "absent": "–", "failed": "[red]✗[/red]"}


@dataclass(frozen=True)
class Outcome:
    """What became of a program: "ok", "absent" or "failed", and why."""

    sdk: str
    program: str
    status: str
    reason: str
    seconds: float


def run_programs(python: Path, server: PrivateServer, *programs: str) -> Iterator[Outcome]:
    """Run programs with an environment's SDK; they tell of themselves as they end."""
    key = f"tml-{server.api_key.removeprefix('sk-')}"
    script = Path(__file__).with_name("run_programs.py")
    with TemporaryDirectory(prefix="mint-sdk-") as home:
        variables = {"TINKER_BASE_URL": server.base_url, "TINKER_API_KEY": key, "MATRIX_MODEL": NAME, "HOME": home}
        process = subprocess.Popen(
            [python, script, *programs],
            env=outside(**variables, TINKER_TELEMETRY="0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            yield Outcome(**json.loads(line))
        process.wait(SECONDS)


def main() -> int:
    """The whole table."""
    console = Console()
    table = Table("capability", title="Versions of the SDK, and seconds")
    columns: list[dict[str, Outcome]] = []
    with console.status("making environments") as status, private_server() as server:
        for name in (*VERSIONS, "newest"):
            python = newest("tinker") if name == "newest" else environment(f"tinker=={name}")
            found = {}
            for outcome in run_programs(python, server, *PROGRAMS):
                found[outcome.program] = outcome
                status.update(f"tinker {outcome.sdk}: {outcome.program}")
            columns.append(found)
            table.add_column(name, no_wrap=True)
    for program in PROGRAMS:
        table.add_row(program, *(_cell(column.get(program)) for column in columns))
    console.print(table)
    console.print(f"newest is {next(iter(columns[-1].values())).sdk}")
    for outcome in (each for column in columns for each in column.values() if each.status != "ok"):
        console.print(f"{outcome.sdk}, {outcome.program}: {outcome.reason}", markup=False)
    complete = all(set(column) == set(PROGRAMS) for column in columns)
    return 0 if complete and all(each.status != "failed" for column in columns for each in column.values()) else 1


def _cell(outcome: Outcome | None) -> str:
    return f"{SIGNS[outcome.status]} {outcome.seconds:.1f}" if outcome is not None else SIGNS["failed"]


if __name__ == "__main__":
    sys.exit(main())
