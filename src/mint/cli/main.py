"""The `mint` command's parts. Each is imported when it is used, so that `mint --help` is quick."""

from __future__ import annotations

import typer

from mint.cli.serve import serve

app = typer.Typer(
    name="mint",
    help="A self-hosted, Tinker-compatible post-training service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _group() -> None:
    """With a callback, `mint serve` keeps its name while it is the only command."""


app.command()(serve)
