"""create_custom_loss, and how a pass finds the loss it names.

A loss needs no worker: it is checked and stored, and the future that stands for it has its result at once. It never
changes, so a pass is journaled with its id alone, and a replay computes the same.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from mint.engine.loss_graph import parse_loss_graph
from mint.errors import BadRequestError, TooLargeError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.operations.answered import answered
from mint.server.operations.kind import parse_json
from mint.server.services import Services
from mint.store import journal, repository
from mint.store.schema import CustomLoss, Operation
from mint.wire.passes import PassRequest
from mint.wire.requests import CreateCustomLossRequest

MAX_BYTES = 1 << 20
"""Of an upload; a graph of as many nodes as are allowed has a tenth of that."""

LOSS_ID = "loss_fn_config.loss_id"
NODE_KEYS = ("op", "name", "target", "args", "kwargs")


async def create_custom_loss(services: Services, body: bytes, owner: str) -> Operation:
    """Check and store a loss. A number of a session is one loss: a retry gets the operation that the first try made.

    Raises:
        MintError: the graph is not allowed, or the session is none of the owner's that is open.
    """
    if len(body) > MAX_BYTES:
        raise TooLargeError(f"has {len(body)} bytes; a custom loss has at most {MAX_BYTES}", field="body")
    request = parse_json(CreateCustomLossRequest, body)
    parse_loss_graph(request.name, request.inputs, request.graph)
    number = f"{request.session_id}:loss", request.custom_loss_seq_id
    answer = {"loss_id": loss_id_of(request.session_id, request.custom_loss_seq_id), "type": "create_custom_loss"}
    operation = answered("create_custom_loss", number, owner, answer)

    def write(connection: Connection) -> Operation:
        first = journal.known(connection, operation.stream, operation.seq_id)
        if first is not None:
            return access.owned(first, owner, "session_id", request.session_id)
        access.session(connection, request.session_id, owner)
        repository.insert(connection, _row(request, operation))
        journal.insert(connection, operation)
        return operation

    return await services.database.transaction(write)


def loss_id_of(session_id: str, custom_loss_seq_id: int) -> str:
    """The same number of the same session is the same loss."""
    return f"{session_id}:loss:{custom_loss_seq_id}"


def _row(request: CreateCustomLossRequest, operation: Operation) -> CustomLoss:
    """What of the request makes the loss, and nothing else that was sent along."""
    nodes = [{key: node[key] for key in NODE_KEYS if key in node} for node in request.graph["nodes"]]
    inputs = [{"name": each["name"], "rank": each["rank"]} for each in request.inputs]
    return CustomLoss(
        loss_id=loss_id_of(request.session_id, request.custom_loss_seq_id),
        session_id=request.session_id,
        owner=operation.owner,
        name=request.name,
        graph={"format": 1, "inputs": inputs, "nodes": nodes},
        created_at=operation.created_at,
    )


def custom_loss_facts(connection: Connection, catalog: Catalog, request: PassRequest, owner: str) -> dict[str, Any]:
    """The loss that a pass names, as a fact for the journal; none if it is not a custom one.

    The loss of another session than the run's is one of the facts itself, since it may be forgotten before the run.

    Raises:
        BadRequestError: it names none.
        NotFoundError: there is no such loss.
        PermissionDeniedError: it is someone else's.
    """
    if request.loss_fn != "custom":
        return {}
    loss_id = request.loss_config.get("loss_id")
    if not isinstance(loss_id, str):
        raise BadRequestError("must be the text that create_custom_loss answered", field=LOSS_ID)
    if loss_id.partition(":")[0] == request.model_id.partition(":")[0]:
        catalog.losses.check(connection, loss_id, owner, LOSS_ID)
        return {"custom_loss": loss_id}
    loss = access.owned(repository.find(connection, CustomLoss, loss_id=loss_id), owner, LOSS_ID, loss_id)
    return {"custom_loss": {"name": loss.name, **loss.graph}}


def recall_loss(connection: Connection, catalog: Catalog, facts: dict[str, Any]) -> dict[str, Any]:
    """What the loss among a pass's facts computes, as `loss_graph`; nothing if there is none."""
    loss: str | dict[str, Any] | None = facts.get("custom_loss")
    if loss is None:
        return {}
    if isinstance(loss, str):
        return {"loss_graph": catalog.losses.graph(connection, loss)}
    return {"loss_graph": parse_loss_graph(loss["name"], loss["inputs"], loss)}
