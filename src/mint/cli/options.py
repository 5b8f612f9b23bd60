"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="MINT_DATABASE_URL",
        help="postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. None is SQLite in the data folder.",
        show_envvar=True,
    ),
]
