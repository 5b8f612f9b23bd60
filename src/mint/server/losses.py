"""Uploaded losses as passes compute them: read from their rows, and kept, since a loss never changes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from sqlalchemy import Connection

from mint.engine.loss_graph import LossGraph, parse_loss_graph
from mint.server import access
from mint.store import repository
from mint.store.schema import CustomLoss

KEPT = 64
"""Losses in memory; the one that was not used for longest makes room."""


class Losses:
    """The uploaded losses. Used in transactions only, which run one after the other."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[CustomLoss, LossGraph]] = OrderedDict()

    def check(self, connection: Connection, loss_id: str, owner: str, field: str) -> None:
        """Refuse a loss that is not there, or is not theirs.

        Raises:
            NotFoundError, PermissionDeniedError: naming `field`.
        """
        known = self._find(connection, loss_id)
        access.owned(known and known[0], owner, field, loss_id)

    def graph(self, connection: Connection, loss_id: str) -> LossGraph:
        """What a loss that is there computes."""
        known = self._find(connection, loss_id)
        assert known is not None, f"{loss_id} is named in the journal"
        return known[1]

    def _find(self, connection: Connection, loss_id: str) -> tuple[CustomLoss, LossGraph] | None:
        if loss_id not in self._known:
            row = repository.find(connection, CustomLoss, loss_id=loss_id)
            if row is None:
                return None
            graph = parse_loss_graph(row.name, row.graph["inputs"], row.graph)
            self._known[loss_id] = replace(row, graph={}), graph
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(loss_id)
        return self._known[loss_id]
