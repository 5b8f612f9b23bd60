"""How commands show what a server answers: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="For programs.")]
Row: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

AGES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
SIZES = "kMGT"


def stop(message: str) -> NoReturn:
    """End the command with an error."""
    errors.print("[red]mint:[/red]", Text(message))
    raise typer.Exit(1)


def show_json(document: Any) -> None:
    """As it came."""
    out.print_json(json.dumps(document))


def show_table(rows: Sequence[T], columns: Mapping[str, Callable[[T], str]]) -> None:
    """One line for each row. Nothing is cut: a terminal breaks the end of a long line, and copies it in one piece.

    A column in which no row has anything is left out.
    """
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    filled = [[name, *texts] for name, texts in cells.items() if any(texts)]
    if not filled:
        errors.print("none", style="dim")
        return
    widths = [max(map(cell_len, column)) for column in filled]
    for number, line in enumerate(zip(*filled, strict=True)):
        text = "  ".join(set_cell_size(cell, width) for cell, width in zip(line, widths, strict=True))
        out.print(Text(text.rstrip(), "" if number else "bold"))


def show_facts(facts: Mapping[str, str | Sequence[str] | None]) -> None:
    """One thing: a line for each fact that there is, and for each of several."""
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        lines = [value] if isinstance(value, str) else value or ()
        for number, line in enumerate(lines):
            out.print(Text.assemble((("" if number else name).ljust(width), "bold"), line))


def show_page(shown: int, cursor: Mapping[str, int]) -> None:
    """Where in its list a page is, unless it is all of it; on stderr, beside the table."""
    offset, total = cursor["offset"], cursor["total_count"]
    if shown < total:
        rest = f"; more with --offset {offset + shown}" if offset + shown < total else ""
        place = f"{offset + 1} to {offset + shown}" if shown else "none"
        errors.print(f"{place} of {total}{rest}", style="dim")


def age(moment: str | None) -> str:
    """How long ago, or in how much time, of an ISO time: `3h`."""
    if moment is None:
        return ""
    seconds = abs((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    return next((f"{seconds / unit:.0f}{name}" for unit, name in AGES if seconds >= unit), "0s")


def moment(text: str | None) -> str | None:
    """An ISO time in full, with its distance from now."""
    if text is None:
        return None
    when = datetime.fromisoformat(text)
    distance = f"in {age(text)}" if when > datetime.now(UTC) else f"{age(text)} ago"
    return f"{when:%Y-%m-%d %H:%M:%S} UTC ({distance})"


def size(count: int | None) -> str:
    """Bytes: `1.2MB`."""
    if count is None:
        return ""
    value, unit = float(count), ""
    for prefix in SIZES:
        if value < 999.5:
            break
        value, unit = value / 1000, prefix
    return f"{value:.{0 if value >= 99.5 else 1}f}{unit}B" if unit else f"{count}B"


def metadata(values: Mapping[str, str] | None) -> str | None:
    """A user's notes, in one line."""
    return ", ".join(f"{name}={value}" for name, value in values.items()) if values else None
