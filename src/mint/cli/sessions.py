"""`mint sessions`: the clients of a server."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mint.cli.api import Api, BaseUrl
from mint.cli.tables import Json, Row, age, errors, metadata, show_facts, show_json, show_table, size

app = typer.Typer(help="Sessions, one for each client: list and show them.", no_args_is_help=True)


class Status(StrEnum):
    """Of a session whose client is heard of, or which has ended."""

    ACTIVE = "active"
    FINISHED = "finished"


WIRE_STATUS = {Status.ACTIVE: "active", Status.FINISHED: "client_finished"}


@app.command("list")
def list_sessions(  # the options of a command
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=200)] = 20,
    after: Annotated[str | None, typer.Option(help="The last session of the page before.")] = None,
    name: Annotated[str | None, typer.Option(help="Words of the display name.")] = None,
    project: Annotated[list[str] | None, typer.Option(help="Of this project only; repeatable.")] = None,
    status: Annotated[Status | None, typer.Option(help="Of these only.")] = None,
    base_url: BaseUrl = None,
    as_json: Json = False,
) -> None:
    """List sessions, newest first."""
    query: dict[str, Any] = {"limit": limit, "display_name": name, "project_ids": project}
    query["cursor"] = {"last_session_id": after} if after is not None else None
    query["statuses"] = [{"type": WIRE_STATUS[status]}] if status is not None else None
    wanted = {field: value for field, value in query.items() if value}
    answer = Api(base_url).ask("POST", "sessions/search", json=wanted)
    if as_json:
        show_json(answer)
        return
    columns = {
        "age": lambda session: age(session["created_at"]),
        "state": _state,
        "saved": lambda session: str(session["checkpoints_count"]),
        "size": lambda session: size(session["checkpoint_storage_bytes"]),
        "session": lambda session: session["session_id"],
        "name": lambda session: session["display_name"] or "",
    }
    show_table(answer["sessions"], columns)
    if answer["next_cursor"] is not None:
        errors.print(f"more with --after {answer['next_cursor']['last_session_id']}", style="dim")


@app.command()
def show(session_id: str, base_url: BaseUrl = None, as_json: Json = False) -> None:
    """Show what was made in a session."""
    session = Api(base_url).ask("GET", f"sessions/{quote(session_id, safe='')}")
    if as_json:
        show_json(session)
        return
    show_facts(
        {
            "session": session_id,
            "name": session["display_name"],
            "metadata": metadata(session["user_metadata"]),
            "runs": session["training_run_ids"],
            "samplers": session["sampler_ids"],
        }
    )


def _state(session: Row) -> str:
    status = session["status"]
    if status is None:
        return "silent"
    reason = status.get("reason")
    return str(reason["type"]) if reason else str(status["type"])
