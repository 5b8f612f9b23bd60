"""The optimizer's state of an uploaded training checkpoint: one of ours, of this version, beside its adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

from mint.engine.formats import LAYOUT_VERSION, MOMENTS, OPTIMIZER_FILE
from mint.errors import BadRequestError
from mint.server.uploads.tensors import TensorFile
from mint.store import files

MAX_STEPS = 1 << 53
"""Above, float64 cannot count steps one by one."""


def write_optimizer(uploaded: Path, staged: Path, num_parameters: int) -> None:
    """Check the state and move it to a staged folder.

    Raises:
        BadRequestError: it does not belong to an adapter of so many numbers.
        OSError: the disk refuses.
    """
    file = TensorFile(uploaded / OPTIMIZER_FILE)
    steps = _scalar(file, "step")
    if not 0 <= steps < MAX_STEPS:
        raise _refusal(f"step is {steps}, which is no number of steps")
    if (layout := _scalar(file, "layout")) != LAYOUT_VERSION:
        raise _refusal(f"layout is {layout}; the state of version {LAYOUT_VERSION} can be read")
    moments = {name for name in MOMENTS if name in file.tensors}
    if file.tensors.keys() - moments != {"step", "layout"} or len(moments) != (len(MOMENTS) if steps else 0):
        raise _refusal(f"has {sorted(file.tensors)}, which are not the tensors of a state after {steps} steps")
    for name in moments:
        stored = file.tensors[name]
        if (stored.dtype, stored.shape) != ("F32", (num_parameters,)):
            raise _refusal(f"{name} is {stored.dtype} {list(stored.shape)}, not F32 [{num_parameters}]")
        if file.read(name).min() < 0 and name == "exp_avg_sq":
            raise _refusal(f"{name} has a negative number, which is no square")
    shutil.move(uploaded / OPTIMIZER_FILE, staged / OPTIMIZER_FILE)
    files.sync(staged / OPTIMIZER_FILE)


def _scalar(file: TensorFile, name: str) -> int:
    stored = file.tensors.get(name)
    if stored is None or (stored.dtype, stored.shape) != ("I64", ()):
        raise _refusal(f"has no whole number {name}")
    return int(file.read(name))


def _refusal(message: str) -> BadRequestError:
    return BadRequestError(message, field=OPTIMIZER_FILE)
