"""`mint checkpoints merge`: a base model with a checkpoint in its weights, as a folder that transformers loads.

It works on files, whether or not a server runs: on where a server keeps them, or on a checkpoint that was downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from mint.cli.database import transaction
from mint.cli.options import CheckpointStoreUrl, DatabaseUrl, DataDir
from mint.cli.serve import model_source
from mint.cli.tables import errors, out, size, stop
from mint.config import DEFAULT_DATA_DIR
from mint.errors import BadRequestError, MintError, NotFoundError


def merge(  # the options of a command
    source: Annotated[str, typer.Argument(help="tinker://RUN/…/NAME, or the folder of a PEFT adapter.")],
    output: Annotated[Path, typer.Option(help="The folder to make.")],
    base: Annotated[
        str | None,
        typer.Option(help="The base model: a folder or Hugging Face name.", show_default="what it is called"),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    checkpoint_store: CheckpointStoreUrl = None,
    max_shard_size: Annotated[str, typer.Option(help="Of each file of weights.")] = "5GB",
) -> None:
    """Write a base model with a checkpoint merged into its weights, for transformers and whatever reads its format."""
    target = output.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        stop(f"{target} exists; name a folder that is yet to be made with --output")
    try:
        server = _Server(data_dir.expanduser().resolve(), database_url, checkpoint_store)
        with _found(source, server) as (folder, base_model), _staged(target) as staged:
            location = base if base is not None else model_source(base_model).location
            _merge(location, folder, staged, max_shard_size)
    except (MintError, OSError) as error:
        stop(str(error))
    total = sum(file.stat().st_size for file in target.iterdir())
    out.print(Text(f"{target}: {base_model} with {source}, {size(total)}"))


@dataclass(frozen=True)
class _Server:
    """Where a server keeps what it has."""

    data_dir: Path
    database_url: str | None
    checkpoint_store: str | None


@contextmanager
def _found(source: str, server: _Server) -> Iterator[tuple[Path, str]]:
    """The folder of a checkpoint, and what its base model is called.

    Raises:
        MintError: there is none.
    """
    if "://" in source:
        with _found_in_server(source, server) as found:
            yield found
        return
    folder = Path(source).expanduser()
    try:
        base_model = str(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequestError(f"{source} is neither a tinker:// path nor a folder of an adapter: {error!r}") from error
    yield folder, base_model


@contextmanager
def _found_in_server(source: str, server: _Server) -> Iterator[tuple[Path, str]]:
    """What is in a store of objects only is fetched to a folder of its own: a server that runs has its cache alone."""
    from mint.store import checkpoints, files  # noqa: PLC0415
    from mint.store.objects import checkpoint_store  # noqa: PLC0415
    from mint.wire.paths import CheckpointPath  # noqa: PLC0415

    path = str(CheckpointPath.parse(source, "SOURCE"))
    found = transaction(server.data_dir, server.database_url, lambda c: checkpoints.live(c, path))
    if found is None:
        raise NotFoundError(f"{path} does not exist")
    root, url, name = server.data_dir / "checkpoints", server.checkpoint_store, found.directory
    with TemporaryDirectory(prefix="mint-") as fetched:
        if not checkpoint_store(root, url, cache_bytes=0).is_here(name):
            root = Path(fetched)
            checkpoint_store(root, url, cache_bytes=0).fetch(name)
        if not (root / name).is_dir():
            raise NotFoundError(f"{path} has no files in {root}; if they are in a store, name it: --checkpoint-store")
        files.check(root / name, path, "SOURCE")
        yield root / name, found.base_model


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place once the body has ended, and is removed if it fails."""
    from mint.engine.files import sync_folder  # noqa: PLC0415

    staged = target.with_name(f".{target.name}.{token_hex(4)}.staged")
    staged.mkdir(parents=True)
    try:
        yield staged
        sync_folder(staged)
        staged.rename(target)
    finally:
        rmtree(staged, ignore_errors=True)


def _merge(location: str, adapter: Path, target: Path, max_shard_size: str) -> None:
    from transformers.utils import logging  # noqa: PLC0415

    from mint.engine import merging  # noqa: PLC0415

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as progress:
        factors = merging.PeftAdapter.read(adapter)
        task = progress.add_task("loading the base model", total=None)
        model = merging.load_base(location)
        progress.update(task, description="merging layers", total=len(factors.factors))
        for _ in merging.merge(model, factors):
            progress.advance(task)
        progress.update(task, description="writing", total=None)
        merging.save(model, location, target, max_shard_size)
