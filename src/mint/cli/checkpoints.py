"""`mint checkpoints`: what was saved on a server. Those that move files are modules of their own; see `main.py`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from mint.cli.api import Api, BaseUrl, Limit, Offset
from mint.cli.durations import DURATIONS, seconds_of
from mint.cli.tables import (
    Json,
    Row,
    age,
    metadata,
    moment,
    out,
    show_facts,
    show_json,
    show_page,
    show_table,
    size,
    stop,
)

app = typer.Typer(help="Checkpoints: find, share, keep, merge and delete them.", no_args_is_help=True)

FORM = "tinker://RUN/SEGMENT/NAME"

Path = Annotated[str, typer.Argument(help=f"{FORM}, as it is listed.")]

USES = {"training": "training and sampling", "sampler": "sampling", "external": "download"}

SCHEMES = ("tinker://", "mint://")


@app.command("list")
def list_checkpoints(
    run: Annotated[str | None, typer.Option(help="Of this run only, which has no pages.")] = None,
    limit: Limit = 20,
    offset: Offset = 0,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """List checkpoints, newest first."""
    api = Api(base_url)
    if run is not None:
        answer = api.ask("GET", f"training_runs/{quote(run, safe='')}/checkpoints")
    else:
        answer = api.ask("GET", "checkpoints", params={"limit": limit, "offset": offset})
    if as_json:
        show_json(answer)
        return
    columns = {
        "age": lambda row: age(row["time"]),
        "size": lambda row: size(row["size_bytes"]),
        "ttl": lambda row: age(row["expires_at"]),
        "public": lambda row: "yes" if row["public"] else "",
        "checkpoint": lambda row: row["tinker_path"],
    }
    show_table(answer["checkpoints"], columns)
    if run is None:
        show_page(len(answer["checkpoints"]), answer["cursor"])


@app.command()
def show(path: Path, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show a checkpoint."""
    api = Api(base_url)
    checkpoint = {**_listed(api, path), **api.ask("POST", "weights_info", json={"tinker_path": path})}
    if as_json:
        show_json(checkpoint)
        return
    layers = {"attention": "train_attn", "MLP": "train_mlp", "unembedding": "train_unembed"}
    show_facts(
        {
            "checkpoint": checkpoint["tinker_path"],
            "base model": checkpoint["base_model"],
            "rank": str(checkpoint["lora_rank"]),
            "adapts": ", ".join(name for name, field in layers.items() if checkpoint[field]),
            "for": USES[checkpoint["checkpoint_type"]],
            "size": size(checkpoint["size_bytes"]),
            "saved": moment(checkpoint["time"]),
            "expires": moment(checkpoint["expires_at"]) or "never",
            "read by": "every key of the server" if checkpoint["public"] else "its owner",
            "metadata": metadata(checkpoint["user_metadata"]),
        }
    )


@app.command()
def publish(path: Path, base_url: BaseUrl = None) -> None:
    """Let every key of the server read a checkpoint."""
    Api(base_url).ask("POST", f"{_url(path)}/publish")
    out.print(path, "can be read with every key of the server", markup=False)


@app.command()
def unpublish(path: Path, base_url: BaseUrl = None) -> None:
    """Keep a checkpoint to its owner again."""
    Api(base_url).ask("DELETE", f"{_url(path)}/publish")
    out.print(path, "can be read by its owner only", markup=False)


@app.command()
def ttl(
    path: Path,
    time: Annotated[str, typer.Argument(help=f"How long to keep it from now on: {DURATIONS}; or never.")],
    base_url: BaseUrl = None,
) -> None:
    """Say when a checkpoint expires."""
    seconds = seconds_of(time, "a time other than never") if time != "never" else None
    Api(base_url).ask("PUT", f"{_url(path)}/ttl", json={"ttl_seconds": seconds})
    out.print(path, "is kept" if seconds is None else f"expires in {time}", markup=False)


@app.command()
def delete(
    paths: Annotated[list[str], typer.Argument(help="Checkpoints.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    base_url: BaseUrl = None,
) -> None:
    """Delete checkpoints. One that something of yours reads is not deleted, and ends the command."""
    api, urls = Api(base_url), [_url(path) for path in paths]
    if not yes:
        typer.confirm(f"Delete {', '.join(paths)}?", abort=True)
    for path, url in zip(paths, urls, strict=True):
        api.ask("DELETE", url)
        out.print(path, "is deleted", markup=False)


def _url(path: str) -> str:
    run_id, segment, name = _parts(path)
    return f"training_runs/{quote(run_id, safe='')}/checkpoints/{quote(segment, safe='')}/{quote(name, safe='')}"


def _parts(path: str) -> list[str]:
    scheme = next((scheme for scheme in SCHEMES if path.startswith(scheme)), None)
    parts = path.removeprefix(scheme or "").split("/")
    if scheme is None or len(parts) != 3:
        stop(f"{path} is no checkpoint; it should read {FORM}")
    return parts


def _listed(api: Api, path: str) -> Row:
    """What the list of its run has of a checkpoint."""
    run_id, segment, name = _parts(path)
    listed: dict[str, Any] = api.ask("GET", f"training_runs/{quote(run_id, safe='')}/checkpoints")
    found: list[Row] = [row for row in listed["checkpoints"] if row["checkpoint_id"] == f"{segment}/{name}"]
    if not found:
        stop(f"{path} does not exist")
    return found[0]
