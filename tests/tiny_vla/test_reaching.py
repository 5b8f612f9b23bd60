"""The arena of the reaching task."""

from __future__ import annotations

import numpy as np
import pytest

from mint.openpi import CAMERA_LAYOUT
from mint.tiny_vla.reaching import (
    CHUNKS,
    FLOOR,
    GRIPPER,
    HORIZON,
    IMAGE_SIZE,
    MAX_STEP,
    OUTSIDE,
    SQUARE,
    Reaching,
    expert,
    instruction,
    render,
)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_expert_reaches_every_square_in_time(mirrored: bool) -> None:
    arena = Reaching.start(3, 200, mirrored)
    for _ in range(CHUNKS):
        assert not arena.reached.all()
        arena.step(expert(arena.positions, arena.targets, mirrored))
        if arena.reached.all():
            break
    assert arena.reached.all()


def test_the_expert_of_one_arm_does_not_help_the_other() -> None:
    arena = Reaching.start(3, 200, mirrored=True)
    for _ in range(CHUNKS):
        arena.step(expert(arena.positions, arena.targets))
    assert not arena.reached.any()
    assert instruction(False) != instruction(True)


def test_nobody_reaches_a_square_by_going_one_way_or_by_standing_still() -> None:
    for step in ([0, 0], [MAX_STEP, 0], [-MAX_STEP, MAX_STEP]):
        arena = Reaching.start(3, 400)
        for _ in range(CHUNKS):
            arena.step(np.tile(step, (400, HORIZON, 1)))
        assert arena.reached.mean() < 0.15


def test_steps_are_as_long_as_the_arm_is_fast_and_end_at_the_wall() -> None:
    arena = Reaching(np.zeros((1, 2)), np.array([[0.9, 0.9]]), mirrored=False, reached=np.zeros(1, bool))
    been = arena.step([[[5.0, 0.0]] * HORIZON])
    np.testing.assert_allclose(been[:, 0, 0], MAX_STEP * np.arange(1, HORIZON + 1))
    for _ in range(10):
        arena.step([[[-5.0, 0.0]] * HORIZON])
    assert arena.positions.tolist() == [[-1.0, 0.0]]


def test_who_has_arrived_stays() -> None:
    arena = Reaching(np.zeros((1, 2)), np.array([[0.15, 0.0]]), mirrored=False, reached=np.zeros(1, bool))
    been = arena.step([[[MAX_STEP, 0.0]] * HORIZON])
    assert arena.reached.all()
    np.testing.assert_allclose(been[:, 0, 0], MAX_STEP)


def test_episodes_depend_on_the_seed_alone() -> None:
    first, again, other = (Reaching.start(seed, 5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.targets, again.targets)
    assert (first.targets != other.targets).all()


def test_what_the_cameras_see() -> None:
    """The gripper at the right, the square straight above it: up is up, right is right."""
    images = render(np.array([[0.5, 0.0]]), np.array([[0.5, 0.5]]))
    assert tuple(images) == CAMERA_LAYOUT
    assert all(image.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3) for image in images.values())
    base, near, far = (image[0] for image in images.values())

    def pixel(image: np.ndarray, half: float, x: float, y: float) -> tuple[int, ...]:
        scale = IMAGE_SIZE / (2 * half)
        return tuple(image[int((half - y) * scale), int((half + x) * scale)].tolist())

    assert pixel(base, 1.15, 0.5, 0.5) == SQUARE
    assert pixel(base, 1.15, 0.5, 0.0) == GRIPPER
    assert pixel(base, 1.15, -0.5, 0.0) == FLOOR
    assert pixel(base, 1.15, 1.1, 0.0) == OUTSIDE
    for image, half in ((near, 0.6), (far, 1.2)):
        assert pixel(image, half, 0.01, 0.01) == pytest.approx(GRIPPER, abs=3)
        assert pixel(image, half, 0.0, 0.5) == SQUARE
        assert pixel(image, half, -0.5, 0.01) == FLOOR
    assert pixel(far, 1.2, 0.7, 0.0) == OUTSIDE
