"""`mint checkpoints download` and `upload`: checkpoints as folders of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from mint.client.discovery import resolve

if TYPE_CHECKING:
    import httpx

    from mint.client.transfers import Advance, Server

out = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

BaseUrl = Annotated[str | None, typer.Option(help="Of the server; otherwise found as clients find it.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def download(
    path: Annotated[str, typer.Argument(help="tinker://RUN/SEGMENT/NAME.")],
    folder: Annotated[Path | None, typer.Argument(help="To be made. [default: NAME]")] = None,
    base_url: BaseUrl = None,
    token: Annotated[
        str | None, typer.Option(envvar="MINT_WEIGHTS_ACCESS_TOKEN", help="Opens a checkpoint that is another's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download a checkpoint's files, which peft can load, and compare them with their hashes."""
    from mint.client import transfers  # noqa: PLC0415

    target = folder if folder is not None else Path(path.rpartition("/")[2] or "checkpoint")
    with _bar(f"download {target.name}", hidden=as_json) as advance:
        transfers.download(_server(base_url), path, target.absolute(), token, advance)
    size = sum(file.stat().st_size for file in target.iterdir())
    if as_json:
        out.print_json(json.dumps({"path": path, "folder": str(target), "size_bytes": size}))
    else:
        out.print(Text(str(target)))


def upload(
    source: Annotated[Path, typer.Argument(help="A folder with an adapter, or a tar archive of one.")],
    name: Annotated[str, typer.Option(help="Of the checkpoint.")] = "uploaded",
    base_model: Annotated[str | None, typer.Option(help="If the adapter's configuration names another.")] = None,
    project: Annotated[str | None, typer.Option(help="Where it belongs.")] = None,
    ttl: Annotated[int | None, typer.Option(help="Seconds to keep it, from 3600 on. None: for ever.")] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Upload a LoRA in peft's format, or a downloaded training checkpoint; prints the path of the new checkpoint."""
    from mint.client import transfers  # noqa: PLC0415

    fields = {"name": name, "base_model": base_model, "project_id": project, "ttl_seconds": ttl}
    with _bar(f"upload {source.name}", hidden=as_json) as advance:
        answer = transfers.upload(_server(base_url), source, fields, advance)
    if as_json:
        out.print_json(json.dumps(answer))
    else:
        out.print(Text(answer["path"]))


@contextmanager
def _bar(label: str, *, hidden: bool) -> Iterator[Advance]:
    """A progress bar; what goes wrong below it ends the command."""
    from mint.client.progress import progress_bar  # noqa: PLC0415

    try:
        with progress_bar(label, False if hidden else None) as advance:
            yield advance
    except (OSError, ValueError) as error:
        _stop(str(error))


def _server(base_url: str | None) -> Server:
    from mint.client.transfers import Server  # noqa: PLC0415

    endpoint = resolve(base_url)
    if endpoint.base_url is None:
        _stop("no server runs here; start one with `mint serve`, or name one with --base-url or MINT_BASE_URL")
    if endpoint.api_key is None:
        _stop(f"no key for {endpoint.base_url}; set MINT_API_KEY")
    return Server(endpoint.base_url, endpoint.api_key, _refuse)


def _refuse(answer: httpx.Response) -> NoReturn:
    try:
        _stop(str(answer.json()["detail"]))
    except (ValueError, KeyError, TypeError):
        _stop(f"{answer.url} answered {answer.status_code}; is that a MinT server?")


def _stop(message: str) -> NoReturn:
    errors.print("[red]mint:[/red]", Text(message))
    raise typer.Exit(1)
