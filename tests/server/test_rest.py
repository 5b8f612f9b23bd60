"""Lists of runs and sessions: newest first, by page, with true totals; and what is told of each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from mint.server import services
from mint.server.auth import digest_of, own_tenant

from .inprocess import MODEL, ON_BOTH, Api, Serve, play
from .test_checkpoints import saved


async def get(api: Api, path: str) -> Any:
    response = await api.send("GET", path)
    assert response.status_code == 200, response.text
    return response.json()


@ON_BOTH
def test_pages_of_runs(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            runs = [await world.alice.run(session, number) for number in range(5)]
            await world.bob.run()
            for offset, expected in ((0, runs[:2:-1]), (2, runs[2:0:-1]), (4, runs[:1]), (5, [])):
                page = await get(world.alice, f"training_runs?limit=2&offset={offset}")
                assert [each["training_run_id"] for each in page["training_runs"]] == expected
                assert page["cursor"] == {"offset": offset, "limit": 2, "total_count": 5}
            for query, field in {
                "limit=0": "query.limit",
                "limit=1001": "query.limit",
                "offset=-1": "query.offset",
                f"offset={10**30}": "query.offset",
                "access_scope=mine": "query.access_scope",
            }.items():
                response = await world.alice.send("GET", f"training_runs?{query}")
                assert (response.status_code, response.json()["field"]) == (422, field)

    play(scene)


@ON_BOTH
def test_pages_of_checkpoints(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            run = await world.alice.run()
            paths = [await saved(world.alice, run, seq_id, f"step-{seq_id}") for seq_id in range(1, 6)]
            for offset, expected in ((0, paths[:2:-1]), (2, paths[2:0:-1]), (4, paths[:1]), (9, [])):
                page = await get(world.alice, f"checkpoints?limit=2&offset={offset}")
                assert [row["tinker_path"] for row in page["checkpoints"]] == expected
                assert page["cursor"] == {"offset": offset, "limit": 2, "total_count": 5}
            rows = (await get(world.alice, f"training_runs/{run}/checkpoints"))["checkpoints"]
            assert [row["tinker_path"] for row in rows] == paths[::-1]

    play(scene)


@ON_BOTH
def test_what_is_told_of_a_run(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            body = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 4}}
            run = (await world.alice.result("create_model", {**body, "user_metadata": {"a": "b"}}))["model_id"]
            made = await get(world.alice, f"training_runs/{run}")
            created = datetime.fromisoformat(made.pop("last_request_time"))
            assert (datetime.now(UTC) - created).total_seconds() < 10
            assert made == {
                "training_run_id": run,
                "base_model": MODEL,
                "model_owner": own_tenant(digest_of(world.alice.key)),
                "is_lora": True,
                "lora_rank": 4,
                "corrupted": False,
                "last_checkpoint": None,
                "last_sampler_checkpoint": None,
                "user_metadata": {"a": "b"},
            }
            first = await saved(world.alice, run, 1, "first")
            sampler = {"model_id": run, "seq_id": 2, "path": "revision"}
            revision = (await world.alice.result("save_weights_for_sampler", sampler))["path"]
            second = await saved(world.alice, run, 3, "second")
            # a revision without a name is no checkpoint of anyone's
            await world.alice.result(
                "save_weights_for_sampler", {"model_id": run, "seq_id": 4, "sampling_session_seq_id": 0}
            )
            now = await get(world.alice, f"training_runs/{run}")
            assert now["last_checkpoint"]["tinker_path"] == second != first
            assert now["last_sampler_checkpoint"]["tinker_path"] == revision
            assert datetime.fromisoformat(now["last_request_time"]) > created

    play(scene)


@ON_BOTH
def test_a_run_that_could_not_be_made_is_corrupted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from mint.errors import MintError

    async def scene() -> None:
        async with serve() as world:
            session = await world.alice.session()
            monkeypatch.setattr(world.worker, "_execute", lambda _command: MintError("out of memory"))
            body = {"session_id": session, "model_seq_id": 0, "base_model": MODEL, "lora_config": {"rank": 4}}
            assert "out of memory" in (await world.alice.result("create_model", body))["error"]
            (run,) = (await get(world.alice, "training_runs"))["training_runs"]
            assert run["corrupted"] is True

    play(scene)


@ON_BOTH
def test_sessions_and_projects(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            body = {"project_id": "p", "display_name": "My run", "user_metadata": {"a": "b"}}
            session = (await world.alice.ok("create_session", body))["session_id"]
            other = await world.alice.session()
            run, sampler = await world.alice.run(session), await world.alice.sampler(session)
            answer = await get(world.alice, f"sessions/{session}")
            assert answer == {
                "training_run_ids": [run],
                "sampler_ids": [sampler],
                "user_metadata": {"a": "b"},
                "display_name": "My run",
            }
            assert await get(world.alice, "sessions?limit=1") == {"sessions": [other]}
            assert await get(world.alice, "sessions?offset=1&access_scope=accessible") == {"sessions": [session]}
            mine = await world.alice.run(other)
            for project, runs in (("p", [run]), ("default", [mine]), ("q", [])):
                page = await get(world.alice, f"training_runs?project_id={project}")
                assert [each["training_run_id"] for each in page["training_runs"]] == runs
                assert page["cursor"]["total_count"] == len(runs)
            await world.alice.post(f"sessions/{session}/finish")
            response = await world.alice.send("PUT", f"sessions/{session}/project", json={"project_id": "q"})
            assert (response.status_code, response.content) == (204, b"")
            assert (await get(world.alice, "training_runs?project_id=q"))["cursor"]["total_count"] == 1
            assert (await world.alice.send("GET", "sessions/unknown")).status_code == 404
            for wrong in ("", 1, None, "x" * 257):
                response = await world.alice.send("PUT", f"sessions/{session}/project", json={"project_id": wrong})
                assert (response.status_code, response.json()["field"]) == (422, "project_id")

    play(scene)


@ON_BOTH
def test_storage_by_project(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            for project, names in (("p", ("a", "b")), ("q", ("c",))):
                session = (await world.alice.ok("create_session", {"project_id": project}))["session_id"]
                run = await world.alice.run(session)
                for seq_id, name in enumerate(names, start=1):
                    path = await saved(world.alice, run, seq_id, name)
            copy = {"source_path": path, "destination_project_id": "q"}
            await world.alice.ok("copy_weights", copy)
            rows = (await get(world.alice, "billing/usage/checkpoints/current"))["data"]
            # a copy shares its bytes
            expected = [("p", 2, 2), ("q", 2, 1)]
            assert [(row["project_id"], row["checkpoint_count"], row["size_bytes"]) for row in rows] == expected
            assert (await get(world.admin, "billing/usage/checkpoints/current"))["data"] == rows
            rows = (await get(world.alice, "billing/usage/checkpoints/current?project_id=p"))["data"]
            assert [row["project_id"] for row in rows] == ["p"]
            assert rows[0]["size_gigabytes"] == 2e-9
            assert (await get(world.bob, "billing/usage/checkpoints/current")) == {"data": []}

    play(scene)


@ON_BOTH
def test_search(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with serve() as world:
            names = {}
            for name, fields in {
                "first": {"display_name": "Warm 100% start", "user_metadata": {"lr": "1e-4", "a.b c": "x"}},
                "second": {"display_name": "cold start", "project_id": "p", "user_metadata": {"lr": "1e-3"}},
                "third": {},
            }.items():
                names[(await world.alice.ok("create_session", fields))["session_id"]] = name
            ids = {name: session for session, name in names.items()}
            await world.bob.session()

            async def found(**fields: Any) -> list[str]:
                answer = await world.alice.ok("sessions/search", fields)
                return [names[each["session_id"]] for each in answer["sessions"]]

            assert await found() == ["third", "second", "first"]
            assert await found(session_id=ids["second"]) == ["second"]
            assert await found(display_name="START") == ["second", "first"]
            assert await found(display_name=" start  warm ") == ["first"]
            assert await found(display_name="0%") == ["first"]
            assert await found(display_name="w_rm") == []
            assert await found(display_name="cold", session_id=ids["third"]) == ["third", "second"]
            assert await found(project_ids=["p", "q"]) == ["second"]
            assert await found(user_metadata={"lr": "1e-4"}) == ["first"]
            assert await found(user_metadata={"lr": "1e-4", "a.b c": "x"}) == ["first"]
            assert await found(user_metadata={"lr": "1e-4", "a.b c": "y"}) == []
            assert await found(owner={"type": "accessible"}) == ["third", "second", "first"]
            me = own_tenant(digest_of(world.alice.key))
            assert await found(owner={"type": "user", "owner_urns": [me, "x"]}) == ["third", "second", "first"]
            assert await found(owner={"type": "user", "owner_urns": ["x"]}) == []

            await world.alice.post(f"sessions/{ids['first']}/finish", {"reason": {"type": "errored"}, "detail": "why"})
            await world.alice.post(f"sessions/{ids['second']}/finish")
            ended = {"type": "client_finished"}
            assert await found(statuses=[{"type": "active"}]) == ["third"]
            assert await found(statuses=[ended]) == ["second", "first"]
            assert await found(statuses=[{**ended, "reasons": ["errored"]}, {"type": "active"}]) == ["third", "first"]
            assert await found(statuses=[{"type": "failed"}, {"type": "cancelled"}]) == []
            later = services.time() + 301
            monkeypatch.setattr(services, "time", lambda: later)
            assert await found(statuses=[{"type": "active"}]) == []
            assert await found() == ["third", "second", "first"]

    play(scene)


@ON_BOTH
def test_pages_of_search(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            sessions = [await world.alice.session() for _ in range(5)]
            seen: list[str] = []
            cursor: Any = None
            for _ in range(3):
                body = {"limit": 2, "cursor": cursor, "statuses": [{"type": "active"}]}
                page = await world.alice.ok("sessions/search", body)
                seen += [each["session_id"] for each in page["sessions"]]
                cursor = page["next_cursor"]
            assert (seen, cursor) == (sessions[::-1], None)
            theirs = {"last_created_at": "2026-01-01T00:00:00Z", "last_session_id": await world.bob.session()}
            assert (await world.alice.post("sessions/search", {"cursor": theirs})).status_code == 403

    play(scene)


@ON_BOTH
def test_what_search_tells_of_a_session(serve: Serve) -> None:
    async def scene() -> None:
        async with serve() as world:
            session = (await world.alice.ok("create_session", {"display_name": "x"}))["session_id"]
            for number in range(2):
                run = await world.alice.run(session, number)
                await saved(world.alice, run, 1)
            (summary,) = (await world.alice.ok("sessions/search"))["sessions"]
            created = datetime.fromisoformat(summary.pop("created_at"))
            assert (datetime.now(UTC) - created).total_seconds() < 10
            assert summary == {
                "session_id": session,
                "owner": own_tenant(digest_of(world.alice.key)),
                "project_id": "default",
                "status": {"type": "active"},
                "checkpoints_count": 2,
                "checkpoint_storage_bytes": 2,
                "display_name": "x",
                "user_metadata": None,
            }
            finish = {"reason": {"type": "interrupted"}, "detail": "why"}
            await world.alice.post(f"sessions/{session}/finish", finish)
            (summary,) = (await world.alice.ok("sessions/search"))["sessions"]
            ended = {"type": "client_finished", "reason": {"type": "interrupted"}, "detail": "why"}
            assert summary["status"] == ended

    play(scene)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"display_name": "  "}, "display_name"),
        ({"statuses": []}, "statuses"),
        ({"statuses": [{"type": "odd"}]}, "statuses.0.type"),
        ({"user_metadata": {'a"b': "x"}}, 'user_metadata.a"b.[key]'),
        ({"user_metadata": {"a": 1}}, "user_metadata.a"),
        ({"owner": {"type": "user", "owner_urns": []}}, "owner.owner_urns"),
        ({"cursor": {}}, "cursor.last_session_id"),
    ],
)
@ON_BOTH
def test_a_search_that_is_refused(serve: Serve, body: dict[str, Any], field: str) -> None:
    async def scene() -> None:
        async with serve() as world:
            response = await world.alice.post("sessions/search", body)
            assert (response.status_code, response.json()["field"]) == (422, field)

    play(scene)
