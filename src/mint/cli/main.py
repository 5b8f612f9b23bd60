"""The `mint` command, put together from its parts."""

from __future__ import annotations

import typer

from mint.cli import checkpoints, keys, runs, sessions
from mint.cli.merge import merge
from mint.cli.run import run
from mint.cli.serve import serve
from mint.cli.status import status
from mint.cli.transfers import download, upload

app = typer.Typer(
    name="mint",
    help="A self-hosted, Tinker-compatible post-training service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(serve)
app.command()(status)
app.add_typer(runs.app, name="runs")
app.add_typer(sessions.app, name="sessions")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(keys.app, name="keys")
# of `mint checkpoints`, what moves or writes files
checkpoints.app.command()(merge)
checkpoints.app.command()(download)
checkpoints.app.command()(upload)
# what follows the program is the program's
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)
