"""Quantile statistics and openpi's file of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mint.openpi.statistics import Statistics, load_statistics, save_statistics

DATA = np.random.default_rng(0).normal(size=(400, 5, 3)) * [1, 10, 0.1] + [0, 5, -2]


def test_the_percentiles_are_the_ends_of_the_scale() -> None:
    statistics = Statistics.of(DATA)
    low, high = np.quantile(DATA.reshape(-1, 3), (0.01, 0.99), axis=0)
    np.testing.assert_allclose(
        statistics.normalize([low, (low + high) / 2, high]), [[-1] * 3, [0] * 3, [1] * 3], atol=1e-4
    )


@given(arrays(np.float64, (4, 3), elements=st.floats(-50, 50)))
def test_unnormalize_is_the_inverse(values: np.ndarray) -> None:
    statistics = Statistics.of(DATA)
    np.testing.assert_allclose(statistics.unnormalize(statistics.normalize(values)), values, atol=1e-4)


def test_openpis_file_is_read(tmp_path: Path) -> None:
    """A file as openpi writes it, its numbers worked out by openpi's formula."""
    path = tmp_path / "norm_stats.json"
    state = {"mean": [0.0, 0.0], "std": [1.0, 1.0], "q01": [-2.0, 0.0], "q99": [2.0, 4.0]}
    path.write_text(json.dumps({"norm_stats": {"state": state}}))
    read = load_statistics(path)
    assert set(read) == {"state"}
    value = np.array([1.0, 1.0])
    expected = (value - [-2.0, 0.0]) / (np.array([4.0, 4.0]) + 1e-6) * 2.0 - 1.0
    np.testing.assert_allclose(read["state"].normalize(value), expected, rtol=1e-6)
    # leading dimensions only
    np.testing.assert_allclose(read["state"].normalize(value[:1]), expected[:1], rtol=1e-6)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    statistics = Statistics.of(DATA)
    save_statistics({"actions": statistics}, tmp_path / "norm_stats.json")
    again = load_statistics(tmp_path / "norm_stats.json")["actions"]
    np.testing.assert_array_equal(again.normalize(DATA), statistics.normalize(DATA))
    np.testing.assert_array_equal(again.mean, statistics.mean)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "has no norm_stats"),
        ('{"state": {}}', "has no norm_stats"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": null, "q99": null}}}', "of state must have"),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [0, 1], "q99": [1]}}}', "of one length"),
    ],
)
def test_a_file_without_quantiles_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "norm_stats.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        load_statistics(path)


def test_values_without_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="values have 4 dimensions, the statistics 3"):
        Statistics.of(DATA).normalize(np.zeros(4))
    with pytest.raises(ValueError, match="values must be finite"):
        Statistics.of([[1.0, float("nan")]])
