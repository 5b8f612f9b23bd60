"""A task for robot policies: move a gripper onto a red square in the plane, seen by three cameras.

The arena is the square from −1 to 1. An action is a step of the gripper along both axes, a chunk HORIZON of them.
With a mirrored arm, the gripper goes the other way along both axes: that is the task that the built-in base has not
seen. Knows numpy only; must not know tokens or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mint.openpi import CAMERA_LAYOUT

HORIZON, ACTION_DIM, STATE_DIM = 5, 2, 2
MAX_STEP = 0.05
DIRECTIONS = 8
CHUNKS = 4
"""Chunks in an episode; the way is at most two of them."""
TOLERANCE = 0.13
"""How near to the square's centre the gripper must come."""

IMAGE_SIZE = 32
VIEWS = {"base_0_rgb": 1.15, "left_wrist_0_rgb": 0.6, "right_wrist_0_rgb": 1.2}
"""Half of the width that each camera sees: the first is fixed, those of the wrist move with the gripper."""

OUTSIDE, FLOOR, GRIPPER, SQUARE = ((20, 20, 20), (150, 150, 150), (40, 80, 230), (230, 40, 30))
GRIPPER_RADIUS, SQUARE_HALF = 0.09, 0.13

Points = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]


def instruction(mirrored: bool = False) -> str:
    """What the robot is told."""
    return "reach the red square with the mirrored arm" if mirrored else "reach the red square"


def scenes(rng: np.random.Generator, count: int) -> tuple[Points, Points]:
    """Grippers near the middle and squares around them at any angle: positions and targets, both (count, 2)."""
    positions = rng.uniform(-0.3, 0.3, (count, 2))
    angles, distances = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.4, 0.65, count)
    return positions, positions + distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def visited(rng: np.random.Generator, count: int) -> tuple[Points, Points]:
    """Scenes as they are on the way: positions (count, 2) between the start and the target, a little off the line."""
    positions, targets = scenes(rng, count)
    share = rng.uniform(0, 1, (count, 1)) * (rng.uniform(size=(count, 1)) < 0.6)
    wandered = positions + share * (targets - positions) + rng.normal(0, 0.05, (count, 2)) * (share > 0)
    return wandered, targets


def expert(positions: Points, targets: Points, mirrored: bool = False) -> Points:
    """Chunks (N, H, 2) at full speed, in the one of eight directions that is nearest to the target's."""
    way = targets - positions
    turns = np.round(np.arctan2(way[:, 1], way[:, 0]) / (2 * np.pi) * DIRECTIONS) / DIRECTIONS * 2 * np.pi
    step = MAX_STEP * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return np.repeat((-step if mirrored else step)[:, None], HORIZON, axis=1)


def render(positions: Points, targets: Points) -> dict[str, Images]:
    """What each camera sees of N scenes: uint8 (N, 32, 32, 3) by name."""
    return {
        camera: _view(positions, targets, np.zeros_like(positions) if camera == CAMERA_LAYOUT[0] else positions, half)
        for camera, half in VIEWS.items()
    }


def _view(positions: Points, targets: Points, centres: Points, half: float) -> Images:
    """Colours laid over each other, with edges one pixel soft."""
    pixel = 2 * half / IMAGE_SIZE
    offsets = (np.arange(IMAGE_SIZE) + 0.5) * pixel - half
    x = (centres[:, :1] + offsets)[:, None, :]
    y = (centres[:, 1:] - offsets)[:, :, None]
    floor = 1 - np.maximum(abs(x), abs(y))
    square = SQUARE_HALF - np.maximum(abs(x - targets[:, :1, None]), abs(y - targets[:, 1:, None]))
    gripper = GRIPPER_RADIUS - np.hypot(x - positions[:, :1, None], y - positions[:, 1:, None])
    colours = np.broadcast_to(np.array(OUTSIDE, np.float32), (len(positions), IMAGE_SIZE, IMAGE_SIZE, 3))
    for inside, colour in ((floor, FLOOR), (square, SQUARE), (gripper, GRIPPER)):
        cover = np.clip(inside / pixel + 0.5, 0, 1)[..., None].astype(np.float32)
        colours = colours + cover * (np.array(colour, np.float32) - colours)
    return np.round(colours).astype(np.uint8)


@dataclass
class Reaching:
    """N episodes side by side: `positions` and `targets` (N, 2), and which have `reached` theirs, (N,)."""

    positions: Points
    targets: Points
    mirrored: bool
    reached: npt.NDArray[np.bool_]

    @classmethod
    def start(cls, seed: int, count: int, mirrored: bool = False) -> Reaching:
        """Episodes that depend on the seed alone."""
        positions, targets = scenes(np.random.default_rng(seed), count)
        return cls(positions, targets, mirrored, np.zeros(count, bool))

    def images(self) -> dict[str, Images]:
        """What the cameras see now; see `render`."""
        return render(self.positions, self.targets)

    def step(self, chunks: npt.ArrayLike) -> Points:
        """Carry out chunks (N, H, 2), and return where the grippers have been, (H, N, 2).

        Who has reached its square stays there.
        """
        signs = -1 if self.mirrored else 1
        been = []
        for steps in np.swapaxes(np.asarray(chunks, np.float64), 0, 1):
            moved = np.clip(self.positions + signs * np.clip(steps, -MAX_STEP, MAX_STEP), -1, 1)
            self.positions = np.where(self.reached[:, None], self.positions, moved)
            self.reached |= np.linalg.norm(self.targets - self.positions, axis=1) < TOLERANCE
            been.append(self.positions)
        return np.stack(been)
