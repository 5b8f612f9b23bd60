"""A server whose checkpoints are in a store of objects: they are read wherever they are wanted, and outlive it."""

from __future__ import annotations

import shutil
from pathlib import Path
from time import time
from typing import Any

import pytest

from mint.engine.core import Command, Interpolate, LoadState, RestoreRun, Sample
from mint.server.sweeper import sweep, sweep_orphans
from mint.store import files

from .inprocess import ON_BOTH, Serve, World, play
from .test_checkpoints import saved
from .test_downloads import exported, redirect, unpacked, urls
from .uploads.made import adapter, tar

PROMPT = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 2}}


@pytest.fixture
def store(tmp_path: Path) -> str:
    """What the server does is the same for every kind of store; S3 is tested where the difference is."""
    return f"file://{tmp_path}/objects"


def folders(world: World) -> set[str]:
    root = world.services.catalog.checkpoint_dir
    return {path.name for path in root.iterdir()} if root.is_dir() else set()


def lose_copies(world: World) -> None:
    shutil.rmtree(world.services.catalog.checkpoint_dir)


def watch_reads(world: World, read: list[str]) -> None:
    """See that the files of a command are there when the worker gets it."""
    execute = world.worker.execute

    def executed(command: Command, *rest: Any) -> Any:
        folder = getattr(command, "directory", None) if isinstance(command, LoadState | RestoreRun) else None
        if isinstance(command, Sample) and command.revision is not None:
            folder = command.revision.directory
        if folder is not None:
            assert files.damaged_files(folder) == []
            read.append(type(command).__name__)
        return execute(command, *rest)

    world.worker.execute = executed  # type: ignore[method-assign]


def test_whatever_reads_a_checkpoint_finds_it_here(serve: Serve, store: str) -> None:
    async def scene() -> None:
        read: list[str] = []
        async with serve(checkpoint_store=store) as world:
            run = await world.alice.run()
            future = await world.alice.ok("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            path = (await world.alice.retrieve(future["request_id"]))["path"]
            named = {"model_id": run, "seq_id": 2, "path": "s"}
            revision = (await world.alice.result("save_weights_for_sampler", named))["path"]
            watch_reads(world, read)
            lose_copies(world)
            # in the run's order, though the second need not wait for any files
            load = await world.alice.ok("load_weights", {"model_id": run, "seq_id": 3, "path": path})
            await world.alice.step(run, 4)
            assert [type(command).__name__ for command in world.worker.runs[run]][-2:] == ["LoadState", "OptimStep"]
            assert (await world.alice.retrieve(load["request_id"]))["path"] == path
            session = await world.alice.session()
            new = {"session_id": session, "model_seq_id": 0, "path": path}
            await world.alice.result("load_weights", new)
            sampler = await world.alice.sampler(model_path=revision)
            lose_copies(world)
            drawn = await world.alice.result("asample", {**PROMPT, "sampling_session_id": sampler, "seq_id": 0})
            assert drawn["sequences"][0]["tokens"] == [3, 4]
            assert read == ["LoadState", "RestoreRun", "Sample"]
            # a replay reads it too
            lose_copies(world)
            world.worker.die()
            await world.alice.step(run, 5)
            assert [type(command) for command in world.worker.executed if isinstance(command, LoadState)] == [LoadState]
            assert len(folders(world)) == 1

    play(scene)


def test_what_leaves_the_server_or_is_made_of_others_is_found_too(serve: Serve, store: str) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run = await world.alice.run()
            paths = [await saved(world.alice, run, number, f"c{number}") for number in (1, 2)]
            out = await exported(world.alice, run, 3)

            lose_copies(world)
            link = (await redirect(world.alice, paths[0])).headers["location"]
            assert unpacked((await world.bob.http.get(link)).content)["weights"] == b"1"
            lose_copies(world)
            links = await urls(world.alice, out)
            lose_copies(world)
            assert (await world.bob.http.get(links["weights"])).content == b"1"

            lose_copies(world)
            body = {"source_path": paths[0], "destination_project_id": "p"}
            copy = (await world.alice.ok("copy_weights", body))["tinker_path"]
            here: list[bool] = []
            execute = world.worker.execute

            def executed(command: Command, *rest: Any) -> Any:
                sources = command.sources if isinstance(command, Interpolate) else ()
                here.extend(files.damaged_files(source.directory) == [] for source in sources)
                return execute(command, *rest)

            world.worker.execute = executed  # type: ignore[method-assign]
            body = {"source_paths": [copy, paths[1]], "coefficients": [1, 1]}
            assert "path" in await world.alice.result("mint/checkpoints/interpolate", body)
            assert here == [True, True]
            lose_copies(world)
            taken = {"files": {"file": tar(adapter())}}
            up = (await world.alice.send("POST", "checkpoints/upload", **taken)).json()["path"]
            lose_copies(world)
            loaded = {"session_id": await world.alice.session(), "model_seq_id": 0, "path": up}
            assert (await world.alice.result("load_weights", loaded))["path"] == up

    play(scene)


@ON_BOTH
def test_checkpoints_outlive_the_servers_disk(serve: Serve, tmp_path: Path, store: str, database_url: str) -> None:
    """Where the database does: SQLite's file stands for a copy of it that was put back."""

    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run = await world.alice.run()
            await world.alice.step(run, 1)
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 2, "path": "a"}))["path"]
        other = tmp_path / "another machine"
        other.mkdir()
        if database_url.startswith("sqlite"):
            shutil.copy(tmp_path / "data" / "mint.db", other / "mint.db")
        async with serve(other, checkpoint_store=store) as world:
            session = await world.alice.session()
            new = {"session_id": session, "model_seq_id": 0, "path": path, "optimizer": True}
            assert (await world.alice.result("load_weights", new))["path"] == path
            await world.alice.step(f"{session}:train:0", 1)

    play(scene)


def test_what_is_gone_fails_what_reads_it_and_nothing_else(serve: Serve, tmp_path: Path, store: str) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run = await world.alice.run()
            path = (await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"}))["path"]
            lose_copies(world)
            for folder in (tmp_path / "objects").iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder)
            failed = await world.alice.result("load_weights", {"model_id": run, "seq_id": 2, "path": path})
            assert "are gone" in failed["error"]
            assert await world.alice.step(run, 3) == {"metrics": {"step": 1.0}}

    play(scene)


def test_a_store_that_refuses_fails_the_save_and_not_the_run(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run = await world.alice.run()

            def refuse(*_: object) -> None:
                raise OSError(5, "s3://bucket: the network is down")

            body = {"model_id": run, "seq_id": 1, "path": "a"}
            with monkeypatch.context() as patch:
                patch.setattr("mint.store.objects.obstore.put", refuse)
                failed = await world.alice.result("save_weights", body)
            assert failed == {
                "error": "the files could not be put in place: s3://bucket: the network is down",
                "category": "server",
            }
            assert (await world.alice.result("save_weights", {**body, "seq_id": 2}))["path"].endswith("/weights/a")

    play(scene)


def test_the_sweeper_deletes_here_and_there(serve: Serve, tmp_path: Path, store: str) -> None:
    def there() -> set[str]:
        return {path.name for path in (tmp_path / "objects").iterdir() if path.is_dir() and any(path.iterdir())}

    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            await world.services.started.wait()
            run = await world.alice.run()
            for seq_id, name in enumerate("ab", start=1):
                await world.alice.result("save_weights", {"model_id": run, "seq_id": seq_id, "path": name})
            assert there() == folders(world)
            assert len(there()) == 2
            half = tmp_path / "objects" / "req-half"
            half.mkdir()
            (half / "weights").write_text("uploaded when the server was killed")
            path = f"training_runs/{run}/checkpoints/weights/a"
            assert (await world.alice.send("DELETE", path)).status_code == 204
            await sweep(world.services)
            assert len(there() - {"req-half"}) == len(folders(world)) == 1
            assert await sweep_orphans(world.services, before=time() + 60) == 1
            assert there() == folders(world)

    play(scene)


def test_folders_of_another_database_are_not_touched(serve: Serve, tmp_path: Path, store: str) -> None:
    """Its sweeper would find checkpoints that no row knows."""

    async def scene() -> None:
        async with serve(checkpoint_store=store) as world:
            run = await world.alice.run()
            await world.alice.result("save_weights", {"model_id": run, "seq_id": 1, "path": "a"})
            (kept,) = folders(world)
        (tmp_path / "data" / "mint.db").rename(tmp_path / "lost.db")
        for folder in (tmp_path / "data", tmp_path / "new"):
            async with serve(folder, checkpoint_store=store) as world:
                with pytest.raises(Exception, match="belongs to another database"):
                    await world.app.state.startup
        assert (tmp_path / "data" / "checkpoints" / kept / "manifest.json").exists()
        assert (tmp_path / "objects" / kept / "manifest.json").exists()

    play(scene)
