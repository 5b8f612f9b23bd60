"""The `mint` command, put together from its parts."""

from __future__ import annotations

import typer

from mint.cli import keys
from mint.cli.run import run
from mint.cli.serve import serve

app = typer.Typer(
    name="mint",
    help="A self-hosted, Tinker-compatible post-training service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(serve)
app.add_typer(keys.app, name="keys")
# what follows the program is the program's
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)
