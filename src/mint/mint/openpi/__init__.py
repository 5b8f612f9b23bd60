"""Robot policies: `mintx.openpi`. Needs the `vla` extra, and loads it when a name is first used here."""

from mint.mint.openpi.acting import Act, ActionSession, create_action_session
from mint.mint.openpi.data import Observation, OpenPIProcessor, build_openpi_fast_datum
from mint.mint.openpi.training import (
    OpenPITrainingClient,
    create_openpi_training_client,
    create_openpi_training_client_async,
)
from mint.openpi.fast import FastCodec
from mint.openpi.prompts import PolicyTokens
from mint.openpi.statistics import Statistics, load_statistics, save_statistics

__all__ = [
    "Act",
    "ActionSession",
    "FastCodec",
    "Observation",
    "OpenPIProcessor",
    "OpenPITrainingClient",
    "PolicyTokens",
    "Statistics",
    "build_openpi_fast_datum",
    "create_action_session",
    "create_openpi_training_client",
    "create_openpi_training_client_async",
    "load_statistics",
    "save_statistics",
]
