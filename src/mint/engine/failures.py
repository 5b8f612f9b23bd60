"""What may fail in a worker: what it survives becomes an answer, what it does not ends it."""

from __future__ import annotations

import logging

import torch

from mint.errors import MintError

logger = logging.getLogger(__name__)


class LostRunError(Exception):
    """The state of a run is gone, or half changed: the worker has to end, so that all of it is computed again."""


FATAL = (LostRunError, torch.AcceleratorError)
"""After these the process is of no use: it ends, and the server has another compute again what it had."""


def refusal(error: Exception, what: str) -> MintError:
    """How to answer that `what` has failed; what was not raised on purpose is logged."""
    if isinstance(error, MintError):
        return error
    logger.error("%s failed", what, exc_info=error)
    return MintError(f"{what} failed in the engine: {error}")
