"""What is said where a loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mint.errors import BadRequestError

STEEP = 1e12
"""A slope that no useful loss has; the square of the gradients' norm leaves float32 from a norm of 1.8e19 on."""


def not_finite(index: int) -> BadRequestError:
    """The refusal of a datum whose loss overflows."""
    return BadRequestError(
        "its loss is not finite: either its inputs lie too far from the model's log-probabilities, "
        "or the run's weights have diverged",
        field=f"data[{index}]",
        datum=index,
    )


def overflow(slopes: Mapping[int, float]) -> BadRequestError:
    """The refusal of a pass whose losses are finite and whose gradients are not.

    Args:
        slopes: by datum, the largest |∂loss / ∂logprob|. The steepest datum is named, if that explains the overflow.
    """
    slopes = {index: slope if np.isfinite(slope) else np.inf for index, slope in slopes.items()}
    steepest = max(slopes, key=slopes.__getitem__)
    text = "the gradients of this pass overflow, and were not added: "
    if slopes[steepest] < STEEP:
        text += "no datum's loss is so steep that it explains this, so the run's weights have diverged"
        return BadRequestError(text, field="data")
    text += f"|∂loss / ∂logprob| is {slopes[steepest]:.3g} in this datum, its weights or advantages are too large"
    return BadRequestError(text, field=f"data[{steepest}]", datum=steepest)
