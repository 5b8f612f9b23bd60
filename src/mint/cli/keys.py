"""`mint keys`: who may use a server. Works on its database, also while it runs; it knows within a second."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint.cli.database import transaction
from mint.cli.durations import DURATIONS, seconds_of
from mint.cli.options import DatabaseUrl, DataDir
from mint.cli.tables import Json, errors, out, show_json, show_table, stop
from mint.config import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mint.store.keys import Key

LONGEST_DAYS = 3650

app = typer.Typer(help="Make, list and revoke the keys of a server.", no_args_is_help=True)
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}")
LIMITS = "max_live_runs", "max_queued_operations", "max_stored_bytes", "requests_per_second"


class RoleName(StrEnum):
    """See `mint.store.keys.Role`, which takes longer to import."""

    USER = "user"
    ADMIN = "admin"


@app.command()
def create(  # noqa: PLR0913, PLR0917  # the options of a command
    owner: Annotated[
        str | None, typer.Option(help="Tenant; keys of one owner share all objects. None: a new one.")
    ] = None,
    role: Annotated[RoleName, typer.Option(help="admin also reads audit log and usage of all owners.")] = RoleName.USER,
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[str | None, typer.Option(help=f"How long it holds: {DURATIONS}. None: for ever.")] = None,
    max_live_runs: Annotated[int | None, typer.Option(help="Runs in open sessions.", min=0)] = None,
    max_queued_operations: Annotated[int | None, typer.Option(help="Operations without a result.", min=1)] = None,
    max_stored_bytes: Annotated[int | None, typer.Option(help="Size of all checkpoints.", min=0)] = None,
    requests_per_second: Annotated[float | None, typer.Option(help="Not counting polls.", min=0.001)] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it. It is shown this once: the database has its digest only."""
    from mint.server.auth import digest_of, generate_key, own_tenant  # noqa: PLC0415
    from mint.store import audit, keys  # noqa: PLC0415

    if owner is not None and OWNER.fullmatch(owner) is None:
        stop("--owner must be 1 to 128 of A–Z a–z 0–9 _ . @ + -, and begin with a letter or digit")
    secret = generate_key()
    digest = digest_of(secret)
    wanted = keys.Key(
        digest=digest,
        owner=owner or own_tenant(digest),
        role=keys.Role(role),
        created_at=time(),
        note=note,
        expires_at=time() + _seconds(expires) if expires is not None else None,
        max_live_runs=max_live_runs,
        max_queued_operations=max_queued_operations,
        max_stored_bytes=max_stored_bytes,
        requests_per_second=requests_per_second,
    )

    def write(connection: Connection) -> Key:
        key = keys.create(connection, wanted)
        audit.record(connection, "key_create", key.owner, key_id=key.key_id, role=key.role, note=note, by="mint keys")
        return key

    key = transaction(data_dir, database_url, write, make=True)
    if as_json:
        show_json({"key": secret, **_public(key)})
        return
    out.print(secret, markup=False)
    errors.print(f"key {key.key_id} of {key.owner} ({key.role}); keep it, it is not shown again", markup=False)


@app.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR, database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """Show the keys that were made, ended ones included."""
    from mint.store import keys  # noqa: PLC0415

    found = transaction(data_dir, database_url, keys.all_keys)
    if as_json:
        show_json([_public(key) for key in found])
        return
    columns: dict[str, Callable[[Key], str]] = {
        "id": lambda key: str(key.key_id),
        "owner": lambda key: key.owner,
        "role": lambda key: key.role,
        "created": lambda key: _moment(key.created_at),
        "state": lambda key: key.ended or ("holds" if key.expires_at is None else f"until {_moment(key.expires_at)}"),
        "note": lambda key: key.note,
        "limits": lambda key: ", ".join(f"{k} {v:g}" for k, v in _limits(key).items() if v is not None) or "none",
    }
    show_table(found, columns)


@app.command()
def revoke(
    key_id: int, data_dir: DataDir = DEFAULT_DATA_DIR, database_url: DatabaseUrl = None, as_json: Json = False
) -> None:
    """End a key and its tokens. What its owner has stays."""
    from mint.store import audit, keys  # noqa: PLC0415

    def write(connection: Connection) -> Key | None:
        key = keys.revoke(connection, key_id)
        if key is not None:
            audit.record(connection, "key_revoke", key.owner, key_id=key_id, by="mint keys")
        return key

    key = transaction(data_dir, database_url, write)
    if key is None:
        stop(f"there is no key {key_id} that has not been revoked; see `mint keys list`")
    if as_json:
        show_json(_public(key))
    else:
        out.print(f"key {key_id} of {key.owner} is revoked", markup=False)


def _seconds(text: str) -> int:
    seconds = seconds_of(text, "--expires")
    if seconds > LONGEST_DAYS * 86400:
        stop(f"--expires may be ten years ({LONGEST_DAYS}d) at most")
    return seconds


def _limits(key: Key) -> dict[str, float | None]:
    return {name: getattr(key, name) for name in LIMITS}


def _public(key: Key) -> dict[str, Any]:
    """All there is but the digest, with the state in words."""
    columns = {name: value for name, value in asdict(key).items() if name not in {"digest", "version"}}
    return {**columns, "state": key.ended or "holds"}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
