"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[Path, typer.Option(help="The server's folder, as for `mint serve`.")]

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="MINT_DATABASE_URL",
        help="Of PostgreSQL, as SQLAlchemy has it, with psycopg. None is SQLite in the data folder.",
    ),
]

CheckpointStoreUrl = Annotated[
    str | None,
    typer.Option(
        envvar="MINT_CHECKPOINT_STORE", help="s3://BUCKET/PREFIX to keep checkpoints in. None is the data folder."
    ),
]
