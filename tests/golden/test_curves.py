"""Losses and rewards of two short trainings, step by step, against those on record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.golden.curves import FILE, compute


def test_sft_and_rl_follow_the_recorded_curves_and_learn(tmp_path: Path) -> None:
    recorded = json.loads(FILE.read_text())
    curves = compute(tmp_path)
    np.testing.assert_allclose(curves["sft_loss"], recorded["sft_loss"], rtol=1e-4)
    # another processor rounds differently, and may so draw another token or two
    np.testing.assert_allclose(curves["rl_reward"], recorded["rl_reward"], atol=2 / 64)
    np.testing.assert_allclose(curves["rl_loss"], recorded["rl_loss"], atol=0.25)
    assert curves["sft_loss"][-1] < curves["sft_loss"][0] / 2
    assert np.mean(curves["rl_reward"][-2:]) > np.mean(curves["rl_reward"][:2])
