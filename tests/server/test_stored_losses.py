"""What is kept of an uploaded loss: on disk, in memory, and with a pass."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection

from mint.server import losses
from mint.store import journal, repository
from mint.store.schema import CustomLoss, Operation
from tests.engine.custom_losses import encoded

from .inprocess import MODEL, Serve, play
from .test_custom_loss import RANKS, custom_pass, passes, upload, weighted


def test_of_a_loss_what_it_computes_is_stored_and_nothing_else(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: a pass is journaled with its id, and planned with a graph that has been read before."""

    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            inputs, graph = encoded(weighted, **RANKS)
            inputs[0]["note"] = graph["note"] = graph["nodes"][5]["note"] = "unknown"
            response = await upload(world.alice, session, inputs=inputs, graph=graph)
            loss_id = (await world.alice.retrieve(response.json()["request_id"]))["loss_id"]
            reads: list[object] = []
            find = repository.find

            def noted(connection: Connection, kind: Any, **values: object) -> Any:
                reads.extend(values.values())
                return find(connection, kind, **values)

            monkeypatch.setattr(repository, "find", noted)
            for number in (1, 2, 3):
                future = (await custom_pass(world.alice, run, number, loss_id)).json()
                await world.alice.retrieve(future["request_id"])
            assert reads.count(loss_id) == 1
            assert [each.loss_graph for each in passes(world)] == [passes(world)[0].loss_graph] * 3

            def stored(connection: Connection) -> tuple[list[Operation], CustomLoss | None]:
                return journal.finished(connection, run, -1), find(connection, CustomLoss, loss_id=loss_id)

            operations, row = await world.services.database.transaction(stored)
            facts = {"model": MODEL, "rollout_correction": None, "custom_loss": loss_id}
            assert [operation.facts for operation in operations[1:]] == [facts] * 3
            expected_inputs, expected = encoded(weighted, **RANKS)
            assert row is not None
            assert row.graph == {"format": 1, "inputs": expected_inputs, "nodes": expected["nodes"]}

    play(scene)


def test_losses_that_are_not_used_make_room(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(losses, "KEPT", 2)
        async with serve() as world:
            session = await world.alice.session()
            run = await world.alice.run(session)
            ids = [f"{session}:loss:{number}" for number in range(4)]
            for number in range(4):
                assert (await upload(world.alice, session, number, name=f"loss{number}")).status_code == 200
            for number, place in enumerate((0, 1, 2, 3, 0, 1, 0), 1):
                future = (await custom_pass(world.alice, run, number, ids[place])).json()
                await world.alice.retrieve(future["request_id"])
                graph = passes(world)[-1].loss_graph
                assert graph is not None
                assert graph.name == f"loss{place}"
                assert len(world.services.catalog.losses._known) <= 2

    play(scene)
