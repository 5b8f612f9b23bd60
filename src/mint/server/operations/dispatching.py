"""Journaled operations on their way to a worker, once the checkpoints that they read are here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mint.dispatch.sample_batches import add_batch
from mint.dispatch.sample_queue import SampleTicket
from mint.dispatch.tickets import Ticket
from mint.engine.core import Interpolate, Planned, Result, Sample, SampleBatch
from mint.errors import SERVER_FAULT, MintError
from mint.observability.logs import begin
from mint.server.operations import finishing
from mint.server.operations.kind import Kind
from mint.server.services import Services
from mint.store.schema import Operation

logger = logging.getLogger(__name__)

R = TypeVar("R")


def dispatch(services: Services, kind: Kind[R], operation: Operation, request: R, command: Planned) -> None:
    """Send a journaled operation on its way to the worker; its result will be written down."""

    async def finish(outcome: Result | MintError) -> None:
        begin(request_id=operation.request_id, run_id=operation.stream, owner=operation.owner)
        await finishing.finish(services, kind, operation, request, command, outcome)
        if isinstance(command, Interpolate):
            del services.interpolating[operation.request_id]
            services.dispatcher.unload(operation.stream)  # it had nothing but this operation

    def send() -> None:
        what = operation.request_id, operation.seq_id, operation.facts["model"]
        if isinstance(command, Sample):
            services.presence.beat(operation.client)
            services.samples.add(SampleTicket(*what, command, finish, operation.owner, operation.client))
        elif isinstance(command, SampleBatch):
            services.presence.beat(operation.client)
            first = SampleTicket(*what, command.samples[0], finish, operation.owner, operation.client)
            add_batch(services.samples, first, command)
        else:
            services.dispatcher.submit(operation.stream, Ticket(*what, command, finish))

    folders = {operation.directory} if operation.directory is not None else set()
    if isinstance(command, Interpolate):
        folders = {source.directory.name for source in command.sources}
        services.interpolating[operation.request_id] = folders
    services.results.expect(operation)
    if all(map(services.catalog.store.is_here, folders)):
        send()
        return
    if kind.ordered:
        services.dispatcher.expect(operation.stream, operation.seq_id, operation.facts["model"])
    services.fetching[operation.request_id] = operation
    fetching = asyncio.create_task(_fetch(services, operation, folders, send, finish))
    services.fetches.add(fetching)
    fetching.add_done_callback(services.fetches.discard)


async def _fetch(
    services: Services,
    operation: Operation,
    folders: set[str],
    send: Callable[[], None],
    finish: Callable[[Result | MintError], Awaitable[None]],
) -> None:
    """Send an operation once the checkpoints that it reads are here, unless it was given up meanwhile.

    Those of its run that come after it wait too.
    """
    failure: Exception | None = None
    try:
        for folder in folders:
            await services.fetch(folder)
    except Exception as error:
        logger.exception("operation %s cannot read its checkpoint", operation.request_id)
        failure = error
    if services.fetching.pop(operation.request_id, None) is None:
        return
    if failure is None:
        send()
    else:
        await finish(failure if isinstance(failure, MintError) else MintError(SERVER_FAULT))
        services.dispatcher.skip(operation.stream, operation.seq_id)
