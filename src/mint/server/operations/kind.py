"""The shape of an operation kind, and what a finished one leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError
from sqlalchemy import Connection

from mint.engine.core import Planned, Result
from mint.errors import BadRequestError, MintError
from mint.server.catalog import Catalog
from mint.store.schema import Operation
from mint.wire.passes import JSON
from mint.wire.requests import WireModel

R = TypeVar("R")
M = TypeVar("M", bound=WireModel)
Res = TypeVar("Res")


class InvalidBodyError(BadRequestError):
    """A JSON body that lacks a field or has one of the wrong type."""

    status = 422


@dataclass(frozen=True)
class Completion:
    """The answer to a finished operation, and the rows it changes in the transaction that journals it."""

    body: bytes
    media_type: str = JSON
    effect: Callable[[Connection], None] = lambda _connection: None

    @classmethod
    def json(cls, answer: dict[str, Any], effect: Callable[[Connection], None] | None = None) -> Completion:
        """A JSON answer."""
        body = json.dumps(answer).encode()
        return cls(body) if effect is None else cls(body, effect=effect)


class Kind(Protocol[R]):
    """One kind of operation. A request is parsed, resolved once, then planned: now and at every replay.

    Attributes:
        name: as the journal has it.
        ordered: belongs to a run's stream; the others are independent of each other.
        lines_up: waits for a place in the worker, in the line of samples.
        replayed: changes its run, so that recovery must run it again.
        reads_images: its body may have images, which are decoded in planning.
        saves: the worker writes a checkpoint folder, which is committed before `finish` is called.
    """

    name: str
    ordered: bool
    replayed: bool
    lines_up: bool = False
    saves: bool = False
    reads_images: bool = False

    def parse(self, body: bytes, content_type: str) -> R:
        """Read the body."""
        ...

    def stream(self, request: R) -> tuple[str, int | None]:
        """The client's own numbering: stream and number; None where it stands behind all that has come."""
        ...

    def journaled(self, request: R, body: bytes) -> bytes:
        """What the journal keeps of the body: all of it, unless there is a secret in it."""
        del request
        return body

    def resolve(self, connection: Connection, catalog: Catalog, request: R, owner: str) -> dict[str, Any]:
        """Look up what the request refers to, as facts for the journal.

        `model` must be among them, which says whose worker carries the operation out. (Operations that need none, an
        uploaded loss or a refused request, are journaled without a kind's help, and have no facts.)

        Raises:
            MintError: something is missing, or is someone else's.
        """
        ...

    def recall(self, connection: Connection, catalog: Catalog, facts: dict[str, Any]) -> dict[str, Any]:
        """What `plan` needs beside the facts: what these name and the store keeps, unchanged, for good."""
        del connection, catalog, facts
        return {}

    def plan(self, catalog: Catalog, operation: Operation, request: R) -> Planned:
        """The command for the worker. The facts of `operation` are here those of the journal and what `recall` adds.

        Raises:
            BadRequestError: the request can never succeed.
        """
        ...

    def record(self, connection: Connection, operation: Operation, request: R) -> None:
        """Write rows in the transaction that journals the request; most kinds have none."""
        del connection, operation, request

    def seal(self, folder: Path, request: R) -> None:
        """Change a checkpoint folder that the worker has written, before it is committed; most kinds do not.

        Called in a thread. The files must be flushed to the disk.
        """
        del folder, request

    def finish(self, catalog: Catalog, operation: Operation, request: R, result: Result) -> Completion:
        """Turn the worker's result into the answer.

        Raises:
            MintError: the result cannot stand after all.
        """
        ...


def parse_json(model: type[M], body: bytes) -> M:
    """Read a JSON body as a request.

    Raises:
        InvalidBodyError: naming the first field that is wrong.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def parse_object(model: type[M], document: dict[str, Any]) -> M:
    """Read what a request has of `model` from a body that is parsed already; see `parse_json`."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidBodyError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "body"
    return InvalidBodyError(f"{first['msg']} (got {shown(first.get('input'))})", field=field)


def expect(result: Result, kind: type[Res]) -> Res:
    """The result, which the worker promises to be of this kind."""
    if not isinstance(result, kind):
        raise MintError(f"the engine answered {type(result).__name__} where {kind.__name__} was due")
    return result
