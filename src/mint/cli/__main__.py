"""`python -m mint.cli`, for those who start the command from a program."""

from mint.cli.main import app

app(prog_name="mint")
