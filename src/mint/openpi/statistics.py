"""Quantile statistics: states and actions on a scale from −1, the 1st percentile of the data, to 1, the 99th.

Reads and writes openpi's `norm_stats.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mint.openpi.fast import Actions

TINY = 1e-6
"""openpi's, which keeps a constant value from dividing by 0."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of one quantity with D dimensions: all are float64 (D,)."""

    mean: Floats
    std: Floats
    q01: Floats
    q99: Floats

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Statistics:
        """Of values (..., D).

        Raises:
            ValueError: there are none, or not all are finite.
        """
        array = np.asarray(values, np.float64)
        if not array.ndim or not array.size or not np.isfinite(array).all():
            raise ValueError(f"values must be finite, (..., D) with at least one, is {array.shape}")
        rows = array.reshape(-1, array.shape[-1])
        q01, q99 = np.quantile(rows, (0.01, 0.99), axis=0)
        return cls(rows.mean(axis=0), rows.std(axis=0), q01, q99)

    def normalize(self, values: npt.ArrayLike) -> Actions:
        """Values (..., D), or the leading dimensions of them, on the scale from −1 to 1.

        Raises:
            ValueError: they have more dimensions than the statistics.
        """
        array = np.asarray(values, np.float64)
        least, width = self._scale(array)
        return np.asarray((array - least) / width * 2 - 1, np.float32)

    def unnormalize(self, values: npt.ArrayLike) -> Actions:
        """The inverse of `normalize`; see there."""
        array = np.asarray(values, np.float64)
        least, width = self._scale(array)
        return np.asarray((array + 1) / 2 * width + least, np.float32)

    def _scale(self, array: Floats) -> tuple[Floats, Floats]:
        dimensions = array.shape[-1] if array.ndim else 0
        if not 0 < dimensions <= len(self.q01):
            raise ValueError(f"values have {dimensions} dimensions, the statistics {len(self.q01)}")
        least = self.q01[:dimensions]
        return least, self.q99[:dimensions] - least + TINY


def load_statistics(path: str | Path) -> dict[str, Statistics]:
    """Those of a `norm_stats.json` by name: "state", "actions".

    Raises:
        OSError, ValueError: there is no such file, or it is none; names the quantity without quantiles.
    """
    content = json.loads(Path(path).read_text())
    named = content.get("norm_stats") if isinstance(content, dict) else None
    if not isinstance(named, dict):
        raise ValueError(f"{path} has no norm_stats")  # noqa: TRY004  # it is the file that is wrong
    return {name: _read(name, fields) for name, fields in named.items()}


def _read(name: str, fields: object) -> Statistics:
    names = ("mean", "std", "q01", "q99")
    if not isinstance(fields, dict) or any(fields.get(field) is None for field in names):
        raise ValueError(f"the statistics of {name} must have {', '.join(names)}")
    arrays = [np.asarray(fields[field], np.float64) for field in names]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise ValueError(f"the statistics of {name} must be vectors of one length")
    return Statistics(*arrays)


def save_statistics(statistics: Mapping[str, Statistics], path: str | Path) -> None:
    """Write them as openpi's `norm_stats.json`."""
    names = ("mean", "std", "q01", "q99")
    content = {name: {field: getattr(of, field).tolist() for field in names} for name, of in statistics.items()}
    Path(path).write_text(json.dumps({"norm_stats": content}, indent=2) + "\n")
