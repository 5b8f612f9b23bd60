"""`mint runs`: what is trained on a server."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from mint.cli.api import Api, BaseUrl, Limit, Offset
from mint.cli.tables import Json, Row, age, metadata, moment, show_facts, show_json, show_page, show_table

app = typer.Typer(help="Training runs: list and show them.", no_args_is_help=True)

Accessible = Annotated[bool, typer.Option("--accessible", help="Also others' that have a published checkpoint.")]


@app.command("list")
def list_runs(  # the options of a command
    limit: Limit = 20,
    offset: Offset = 0,
    project: Annotated[str | None, typer.Option(help="Of this project only.")] = None,
    accessible: Accessible = False,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """List training runs, newest first."""
    query = {"limit": limit, "offset": offset, "access_scope": _scope(accessible)}
    query |= {"project_id": project} if project is not None else {}
    answer = Api(base_url).ask("GET", "training_runs", params=query)
    if as_json:
        show_json(answer)
        return
    columns = {
        "used": lambda run: age(run["last_request_time"]),
        "rank": lambda run: str(run["lora_rank"]),
        "base model": lambda run: run["base_model"],
        "run": lambda run: run["training_run_id"] + ("  (could not be made)" if run["corrupted"] else ""),
    }
    show_table(answer["training_runs"], columns)
    show_page(len(answer["training_runs"]), answer["cursor"])


@app.command()
def show(run_id: str, accessible: Accessible = False, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show a training run."""
    query = {"access_scope": _scope(accessible)}
    run = Api(base_url).ask("GET", f"training_runs/{quote(run_id, safe='')}", params=query)
    if as_json:
        show_json(run)
        return
    show_facts(
        {
            "run": run["training_run_id"],
            "base model": run["base_model"],
            "owner": run["model_owner"],
            "rank": str(run["lora_rank"]),
            "last used": moment(run["last_request_time"]),
            "last checkpoint": _newest(run["last_checkpoint"]),
            "last for sampling": _newest(run["last_sampler_checkpoint"]),
            "metadata": metadata(run["user_metadata"]),
            "state": "could not be made" if run["corrupted"] else None,
        }
    )


def _scope(accessible: bool) -> str:
    return "accessible" if accessible else "owned"


def _newest(checkpoint: Row | None) -> str | None:
    return f"{checkpoint['tinker_path']}  ({age(checkpoint['time'])} ago)" if checkpoint else None
