"""Samples that nobody waits for any more: cancel_future, and what goes with a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mint.errors import BadRequestError, GoneError, MintError, OperationCancelledError
from mint.server import access
from mint.server.operations.finishing import fail
from mint.server.operations.kinds import KINDS
from mint.server.services import Services
from mint.store import journal
from mint.store.schema import Operation, Status


async def cancel(services: Services, request_id: str, owner: str) -> None:
    """Give up a sample: it has failed, and stays so, once this returns; what has ended before keeps its result.

    Raises:
        GoneError: there is no such operation.
        PermissionDeniedError: it is someone else's.
        BadRequestError: it is no sample; a run's operations build on each other.
    """
    here = services.results.find(request_id) is not None
    found = await services.database.transaction(lambda c: journal.find(c, request_id))
    if found is None:
        raise GoneError(f"{request_id} is unknown or has expired", field="request_id")
    access.owned(found, owner, "request_id", request_id)
    kind = KINDS.get(found.kind)
    if kind is None or not kind.lines_up:
        raise BadRequestError(f"is {found.kind}; only samples can be cancelled", field="request_id")
    error = OperationCancelledError("the sample was cancelled")
    await give_up(services, services.samples.of_request(request_id), lambda each: each.request_id == request_id, error)
    if found.status == Status.PENDING and not here:
        await fail(services, found, error)  # it waits in the journal for a model that is not served now


async def give_up(
    services: Services, names: Collection[str], wanted: Callable[[Operation], bool], error: MintError
) -> None:
    """End samples, which fail with `error`.

    Args:
        names: under which those that have their weights are in the queue.
        wanted: which of those that wait for their weights.
    """
    fetching = [each for each in services.fetching.values() if KINDS[each.kind].lines_up and wanted(each)]
    for operation in fetching:
        del services.fetching[operation.request_id]
    await asyncio.gather(services.samples.cancel(names, error), *(fail(services, each, error) for each in fetching))
