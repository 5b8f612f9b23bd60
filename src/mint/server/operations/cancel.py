"""cancel_future: a sample that nobody waits for any more."""

from __future__ import annotations

from mint.errors import BadRequestError, GoneError, OperationCancelledError
from mint.server import access
from mint.server.operations.finishing import fail
from mint.server.operations.kinds import KINDS
from mint.server.services import Services
from mint.store import journal
from mint.store.schema import Status


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
    if kind is None or kind.ordered:
        raise BadRequestError(f"is {found.kind}; only samples can be cancelled", field="request_id")
    error = OperationCancelledError("the sample was cancelled")
    await services.samples.cancel(services.samples.of_request(request_id), error)
    if found.status == Status.PENDING and not here:
        await fail(services, found, error)  # it waits in the journal for a model that is not served now
