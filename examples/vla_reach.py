"""Teach a robot policy a task that its base has not seen: first from demonstrations, then from success alone.

The gripper is to be moved onto a red square, by an arm that goes the other way along both axes. The policy sees three
camera images, and says five steps at a time as FAST tokens. Run it with
`mint run --model openpi/pi0-fast-tiny examples/vla_reach.py`, or against a server that serves this model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import mint as tinker
import mint.mint as mintx
from mint import types
from mint.tiny_vla import NAME, model_path
from mint.tiny_vla.reaching import CHUNKS, TOLERANCE, Reaching, expert, instruction, visited

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Circle

BC_STEPS, BC_BATCH, BC_LEARNING_RATE = 30, 32, 3e-3
RL_STEPS, RL_SCENES, RL_GROUP, RL_CHUNKS, RL_LEARNING_RATE = 40, 16, 8, 2, 1e-3
EPISODES = 100
MIRRORED = True

Way: TypeAlias = npt.NDArray[np.float64]
Acts: TypeAlias = list[tuple[mintx.openpi.Observation, mintx.openpi.Act]]

console = Console()


@dataclass
class Rollout:
    """Episodes as they went: `ways` (steps, N, 2), the squares, who `reached` theirs, and what each episode did."""

    ways: Way
    targets: Way
    reached: npt.NDArray[np.bool_]
    acts: list[Acts]


@dataclass
class Robot:
    """The run being trained, and the arm that it moves."""

    service: tinker.ServiceClient
    run: mintx.OpenPITrainingClient
    processor: mintx.openpi.OpenPIProcessor
    saved: int = 0
    losses: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def observations(self, arena: Reaching) -> list[mintx.openpi.Observation]:
        """What the cameras see in each episode, as PNGs, beside the instruction and the gripper's place."""
        images = arena.images()
        told = instruction(arena.mirrored)
        return [
            self.processor.observation({camera: views[place] for camera, views in images.items()}, told, position)
            for place, position in enumerate(arena.positions)
        ]

    @contextmanager
    def policy(self, trained: bool = True) -> Iterator[mintx.ActionSession]:
        """The run as it is now, or the bare base model."""
        path = None
        if trained:
            self.saved += 1
            path = self.run.save_weights_for_sampler(f"reach-{self.saved}").result().path
        named = {"model_path": path} if path else {"base_model": NAME}
        session = mintx.create_action_session(self.service, **named).result()
        try:
            yield session
        finally:
            session.delete().result()

    def play(
        self,
        policy: mintx.ActionSession,
        arena: Reaching,
        turns: int = CHUNKS,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Rollout:
        """Episodes in closed loop: look, act, look again."""
        episodes, ways = len(arena.positions), [arena.positions[None]]
        acts: list[Acts] = [[] for _ in range(episodes)]
        for turn in range(turns):
            under_way = np.flatnonzero(~arena.reached)
            observations = self.observations(arena)
            asked = [observations[place] for place in under_way]
            answers = (
                policy.act_batch(asked, temperature=temperature, seed=CHUNKS * seed + turn).result() if asked else []
            )
            chunks = np.zeros((episodes, *answers[0].actions.shape)) if answers else np.zeros((episodes, 0, 2))
            for place, act in zip(under_way, answers, strict=True):
                chunks[place] = self.processor.actions(act.actions)
                acts[place].append((observations[place], act))
            ways.append(arena.step(chunks))
        return Rollout(np.concatenate(ways), arena.targets, arena.reached, acts)

    def clone_step(self, seed: int) -> None:
        """One step towards what the expert does, in scenes anywhere on its way."""
        positions, targets = visited(np.random.default_rng(seed), BC_BATCH)
        arena = Reaching(positions, targets, MIRRORED, np.zeros(BC_BATCH, bool))
        chunks = expert(positions, targets, MIRRORED)
        data = [
            self.processor.demonstration(observation, chunk)
            for observation, chunk in zip(self.observations(arena), chunks, strict=True)
        ]
        adam = types.AdamParams(learning_rate=BC_LEARNING_RATE)
        output = self.run.train_step(data, "cross_entropy", adam_params=adam).result()
        self.losses.append(output.metrics["loss:mean"])

    def reward_step(self, seed: int) -> None:
        """One step on groups of episodes that begin alike: what the better ones of a group did becomes likelier."""
        scenes = visited(np.random.default_rng(seed), RL_SCENES)
        starts, targets = (np.repeat(points, RL_GROUP, axis=0) for points in scenes)
        arena = Reaching(starts, targets, MIRRORED, np.zeros(RL_SCENES * RL_GROUP, bool))
        with self.policy() as policy:
            rollout = self.play(policy, arena, RL_CHUNKS, temperature=1.0, seed=seed)
        self.rewards.append(float(rollout.reached.mean()))
        groups = rollout.reached.reshape(RL_SCENES, RL_GROUP)
        advantages = (groups - groups.mean(axis=1, keepdims=True)).ravel()
        data = [
            self.processor.experience(observation, act.tokens, act.logprobs, float(advantage))
            for acts, advantage in zip(rollout.acts, advantages, strict=True)
            for observation, act in acts
            if advantage
        ]
        if data:
            adam = types.AdamParams(learning_rate=RL_LEARNING_RATE)
            self.run.train_step(data, "importance_sampling", adam_params=adam).result()


def show(name: str, rollout: Rollout) -> None:
    console.print(
        f"  success {name:<12} {rollout.reached.mean():4.0%}  ({rollout.reached.sum()} of {len(rollout.reached)})"
    )


def repeat(title: str, steps: int, step: Callable[[int], None], value: Callable[[], str]) -> None:
    """With a bar that shows what is being improved."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[value]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=steps, value="")
        for number in range(steps):
            step(number)
            progress.update(task, advance=1, value=value())


def draw(rollouts: dict[str, Rollout], path: Path, episodes: int = 40) -> None:
    """The ways of the first episodes, each moved so that its square lies in the middle."""
    figure, panels = plt.subplots(1, len(rollouts), figsize=(4 * len(rollouts), 4.3), layout="constrained")
    for panel, (name, rollout) in zip(panels, rollouts.items(), strict=True):
        for place in range(min(episodes, len(rollout.reached))):
            way = rollout.ways[:, place] - rollout.targets[place]
            colour = "tab:green" if rollout.reached[place] else "tab:red"
            panel.plot(*way.T, color=colour, alpha=0.5, linewidth=1)
            panel.plot(*way[0], "o", color="tab:blue", markersize=3)
        panel.add_patch(Circle((0, 0), TOLERANCE, color="tab:red", alpha=0.3, linewidth=0))
        panel.set(title=f"{name}: {rollout.reached.mean():.0%}", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
        panel.grid(alpha=0.3)
    figure.suptitle("the gripper's way, from each start (blue) to the square (middle)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=Path("out/vla_reach.png"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    first = 10_000 * (arguments.seed + 1)

    with tinker.ServiceClient() as service:
        run = mintx.create_openpi_training_client(service, base_model=NAME, rank=16)
        robot = Robot(service, run, mintx.openpi.OpenPIProcessor.load(model_path()))
        rollouts = {}

        def measure(name: str, trained: bool = True) -> None:
            with robot.policy(trained) as policy:
                rollouts[name] = robot.play(policy, Reaching.start(arguments.seed, EPISODES, MIRRORED))
            show(name, rollouts[name])

        measure("base model", trained=False)
        repeat("cloning", BC_STEPS, lambda n: robot.clone_step(first + n), lambda: f"loss {robot.losses[-1]:.2f}")
        measure("after cloning")
        repeat(
            "RL     ", RL_STEPS, lambda n: robot.reward_step(first + n), lambda: f"mean reward {robot.rewards[-1]:.2f}"
        )
        measure("after RL")
    draw(rollouts, arguments.picture)
    console.print(f"\nThe ways of the gripper are in {arguments.picture}")


if __name__ == "__main__":
    main()
