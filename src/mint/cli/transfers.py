"""`mint checkpoints download` and `upload`: checkpoints as folders of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mint.cli.api import Api, BaseUrl, reason
from mint.cli.durations import DURATIONS, seconds_of
from mint.cli.tables import Json, out, show_json, stop

if TYPE_CHECKING:
    from mint.client.transfers import Advance, Server


def download(
    path: Annotated[str, typer.Argument(help="tinker://RUN/SEGMENT/NAME.")],
    folder: Annotated[Path | None, typer.Argument(help="To be made.", show_default="NAME")] = None,
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
        show_json({"path": path, "folder": str(target), "size_bytes": size})
    else:
        out.print(Text(str(target)))


def upload(
    source: Annotated[Path, typer.Argument(help="A folder with an adapter, or a tar archive of one.")],
    name: Annotated[str, typer.Option(help="Of the checkpoint.")] = "uploaded",
    base_model: Annotated[str | None, typer.Option(help="If the adapter's configuration names another.")] = None,
    project: Annotated[str | None, typer.Option(help="Where it belongs.")] = None,
    ttl: Annotated[str | None, typer.Option(help=f"How long to keep it: {DURATIONS}. None: for ever.")] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """Upload a LoRA in peft's format, or a downloaded training checkpoint; prints the path of the new checkpoint."""
    from mint.client import transfers  # noqa: PLC0415

    seconds = seconds_of(ttl, "--ttl") if ttl is not None else None
    fields = {"name": name, "base_model": base_model, "project_id": project, "ttl_seconds": seconds}
    with _bar(f"upload {source.name}", hidden=as_json) as advance:
        answer = transfers.upload(_server(base_url), source, fields, advance)
    if as_json:
        show_json(answer)
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
        stop(str(error))


def _server(base_url: str | None) -> Server:
    from mint.client.transfers import Server  # noqa: PLC0415

    api = Api(base_url)
    return Server(api.base_url, api.api_key, lambda answer: stop(reason(answer)))
