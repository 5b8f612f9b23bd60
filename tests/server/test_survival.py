"""Processes that are killed: what follows equals what would have been.

They are those of the live server, which the other tests have left by now: this file is late in the alphabet.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import mint
from mint import types

from .live import LiveServer
from .sdk import SECONDS, batch, run_of, tokens_of, train

STEPS = 8


def submit(run: mint.TrainingClient, first: int, steps: int) -> list[tuple[Any, Any]]:
    """As `train`, without waiting for anything."""
    return [
        (
            run.forward_backward(batch(number), "cross_entropy"),
            run.optim_step(types.AdamParams(learning_rate=1e-2)),
        )
        for number in range(first, first + steps)
    ]


def curve_of(futures: list[tuple[Any, Any]]) -> list[float]:
    curve = []
    for losses, stepped in futures:
        curve.append(losses.result(SECONDS).metrics["loss:sum"])
        stepped.result(SECONDS)
    return curve


def draw(sampler: mint.SamplingClient) -> Any:
    params = types.SamplingParams(max_tokens=40, seed=3, stop=[])
    return sampler.sample(types.ModelInput.from_ints(tokens_of(1)), num_samples=4, sampling_params=params)


def texts(sample: Any) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in sample.result(SECONDS).sequences]


def test_a_killed_worker_is_not_noticed(live: LiveServer, alice: mint.ServiceClient) -> None:
    undisturbed = train(run_of(alice), 0, STEPS)
    run, bystander = run_of(alice), run_of(alice)
    curve = train(run, 0, 3)
    assert curve == pytest.approx(undisturbed[:3], rel=1e-5)
    train(bystander, 0, 2)
    sampler = run.save_weights_and_get_sampling_client().result(SECONDS)
    expected = texts(draw(sampler))

    futures, sample = submit(run, 3, STEPS - 3), draw(sampler)
    live.kill_worker()
    curve += curve_of(futures)
    np.testing.assert_allclose(curve, undisturbed, rtol=1e-5)
    assert texts(sample) == texts(draw(sampler)) == expected
    np.testing.assert_allclose(train(bystander, 2, 2), undisturbed[2:4], rtol=1e-5)


def test_a_killed_server_is_a_pause(live: LiveServer, alice: mint.ServiceClient) -> None:
    undisturbed = train(run_of(alice), 0, STEPS)
    run = run_of(alice)
    curve = train(run, 0, 3)
    sampler = run.save_weights_and_get_sampling_client().result(SECONDS)
    expected = texts(draw(sampler))
    saved = run.save_state("three").result(SECONDS).path

    futures, sample = submit(run, 3, STEPS - 3), draw(sampler)
    orphan = live.worker
    live.kill()
    live.start(wait=False)
    curve += curve_of(futures)
    np.testing.assert_allclose(curve, undisturbed, rtol=1e-5)
    assert texts(sample) == texts(draw(sampler)) == expected
    orphan.wait(SECONDS)
    # what was saved before is there, and the session, its runs and new ones go on
    other = alice.create_training_client_from_state_with_optimizer(saved).result(SECONDS)
    np.testing.assert_allclose(train(other, 3, 2), undisturbed[3:5], rtol=1e-5)
    live.wait_ready()


@pytest.mark.slow
def test_a_run_killed_ten_times(live: LiveServer, alice: mint.ServiceClient) -> None:
    steps = 60
    undisturbed = train(run_of(alice), 0, steps)
    run = run_of(alice)
    ended = threading.Event()

    def kill_again_and_again() -> None:
        for number in range(10):
            time.sleep(0.5)
            if number % 2:
                live.kill_worker()
            else:
                live.kill()
                live.start()
            while live.get("healthz").status_code != 200:
                time.sleep(0.1)
        ended.set()

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    curve = []
    for number in range(steps):
        curve += train(run, number, 1)
        if number >= 50:
            ended.wait(10 * SECONDS)
    killer.join()
    np.testing.assert_allclose(curve, undisturbed, rtol=1e-5)
