"""Recovery from snapshots: what they stand for is not computed again, and never left out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mint.engine.core import Command, CreateRun, ForwardBackward, LoraShape, RestoreRun, Snapshot
from mint.errors import MintError

from .fakes import FakeWorker, play, settle, step, work_off
from .test_streams import World


def kinds(worker: FakeWorker) -> list[str]:
    return [type(command).__name__ for command in worker.executed]


def scene_of(snapshots: float = 0.0) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(scene: Callable[[World], Awaitable[None]]) -> None:
        async def build() -> None:
            world = World(snapshots=snapshots)
            world.fleet.start()
            await scene(world)

        play(build)

    return run


def test_a_snapshot_follows_a_step_before_anything_else_does() -> None:
    async def scene(world: World) -> None:
        world.arrive(0, 1, 2)
        await work_off(world.fleet)
        assert world.fleet.current is not None
        # while one is under way there is no other
        assert kinds(world.fleet.current) == ["CreateRun", "OptimStep", "Snapshot", "OptimStep"]
        assert world.journal.snapshot is not None
        assert world.journal.snapshot[0] == 1

    scene_of()(scene)


def test_there_is_none_where_gradients_are_left() -> None:
    async def scene(world: World) -> None:
        world.arrive(0)
        world.stream.accept(world.journal.ticket(1, ForwardBackward("run", (), "cross_entropy")))
        await work_off(world.fleet)
        assert world.journal.snapshot is None

    scene_of()(scene)


def test_there_is_none_before_its_time() -> None:
    async def scene(world: World) -> None:
        world.arrive(0, 1, 2, 3)
        await work_off(world.fleet)
        assert world.journal.snapshot is None

    scene_of(snapshots=3600.0)(scene)


def test_recovery_begins_at_the_snapshot() -> None:
    async def scene(world: World) -> None:
        for number in range(6):
            world.arrive(number)
            await work_off(world.fleet)
        expected = list(world.state)
        assert world.journal.snapshot is not None
        before = world.journal.snapshot[0]
        world.fleet.kill()
        worker = world.fleet.start()
        world.arrive(6)
        await work_off(world.fleet)
        assert isinstance(worker.executed[0], RestoreRun)
        assert [c for c in worker.executed[1:] if not isinstance(c, Snapshot)] == [
            step(number) for number in range(before + 1, 7)
        ]
        assert world.state == [*expected, step(6)]

    scene_of()(scene)


def test_a_snapshot_is_not_committed_before_the_results_it_stands_for() -> None:
    """`FakeJournal.commit_snapshot` looks."""

    async def scene() -> None:
        world = World(snapshots=0.0, writes_slowly=500)
        world.fleet.start()
        world.arrive(0, 1)
        await work_off(world.fleet)
        assert world.journal.snapshot is None
        for _ in range(40):
            await settle()
        assert world.journal.snapshot is not None

    play(scene)


def test_a_worker_that_dies_over_a_snapshot_leaves_none() -> None:
    deaths = 0

    def deadly(command: Command) -> bool:
        nonlocal deaths
        deaths += isinstance(command, Snapshot)
        return isinstance(command, Snapshot) and deaths == 1

    async def scene() -> None:
        world = World(deadly=deadly, snapshots=0.0)
        world.fleet.start()
        world.arrive(0, 1, 2)
        await work_off(world.fleet)
        assert world.fleet.current is None
        assert world.journal.snapshot is None
        world.fleet.start()
        await work_off(world.fleet)
        world.arrive(3)
        await work_off(world.fleet)
        assert world.state == [CreateRun("run", LoraShape(4, 0)), step(1), step(2), step(3)]
        assert set(world.journal.finishes.values()) == {1}

    play(scene)


def test_a_worker_that_has_gradients_left_gives_none() -> None:
    """Which the stream cannot know when it sends the snapshot: a `TrainStep` fails with its pass."""

    async def scene() -> None:
        world = World(snapshots=0.0)
        worker = world.fleet.start()
        worker.refused = lambda command: MintError("has gradients") if isinstance(command, Snapshot) else None
        world.arrive(0, 1)
        await work_off(world.fleet)
        assert world.journal.snapshot is None
        worker.refused = lambda _: None
        world.arrive(2)
        await work_off(world.fleet)
        assert world.journal.snapshot is not None

    play(scene)
