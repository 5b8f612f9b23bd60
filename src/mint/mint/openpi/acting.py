"""Action sessions: a policy that is asked, observation by observation, what to do.

Everything returns the SDK's `APIFuture` at once, for `.result()` or `await`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from mint.client.services import ask, call, session_of
from mint.mint.openpi.data import Observation
from mint.openpi.fast import Actions

if TYPE_CHECKING:
    from tinker import APIFuture, ServiceClient


@dataclass(frozen=True, eq=False)
class Act:
    """What a policy would do.

    Attributes:
        actions: float32 (H, D), normalised; see `OpenPIProcessor.actions`.
        tokens: (T,), as they were sampled, and their `logprobs` (T,).
        decode_ok: whether the tokens were those of a chunk; if not, `actions` are what could be made of them.
        timing: of the server, in its own names.
    """

    actions: Actions
    tokens: list[int]
    logprobs: list[float]
    decode_ok: bool
    timing: dict[str, float]


class ActionSession:
    """A policy, as it was when the session was made: its run may train on, or be deleted."""

    def __init__(self, service_client: ServiceClient, action_session_id: str) -> None:
        self.action_session_id = action_session_id
        self._service = service_client
        self._path = f"mint/action_sessions/{action_session_id}"
        self._numbers = count(1)

    def act(self, observation: Observation, *, temperature: float = 0.0, seed: int | None = None) -> APIFuture[Act]:
        """What to do now.

        Args:
            temperature: 0 is the likeliest token each time.
            seed: the same one draws the same tokens.
        """
        request = {"observation": _json(observation), **self._how(temperature, seed)}
        return ask(self._service, f"{self._path}/act", request, _act)

    def act_batch(
        self, observations: Sequence[Observation], *, temperature: float = 0.0, seed: int | None = None
    ) -> APIFuture[list[Act]]:
        """What to do in each of several places; see `act`."""
        request = {"observations": list(map(_json, observations)), **self._how(temperature, seed)}
        return ask(self._service, f"{self._path}/act_batch", request, lambda answer: list(map(_act, answer["results"])))

    def delete(self) -> APIFuture[None]:
        """End the session."""
        return call(self._service, "DELETE", self._path, None, lambda _: None)

    def _how(self, temperature: float, seed: int | None) -> dict[str, Any]:
        chosen = {"seed": seed} if seed is not None else {}
        return {"seq_id": next(self._numbers), "temperature": float(temperature), **chosen}


def create_action_session(
    service_client: ServiceClient, *, base_model: str | None = None, model_path: str | None = None
) -> APIFuture[ActionSession]:
    """A session that acts by a checkpoint for sampling, or by a bare base model.

    Args:
        model_path: `tinker://…/sampler_weights/…`; its base model is known.
    """
    named = {"base_model": base_model, "model_path": model_path}
    request = {"session_id": session_of(service_client), **{name: value for name, value in named.items() if value}}

    def read(answer: dict[str, Any]) -> ActionSession:
        return ActionSession(service_client, answer["action_session_id"])

    return call(service_client, "POST", "mint/action_sessions", request, read)


def _json(observation: Observation) -> dict[str, Any]:
    state = observation.state
    tensor = {"data": state.tolist(), "dtype": "float32", "shape": list(state.shape)}
    return {"model_input": observation.model_input.model_dump(mode="json"), "state": tensor}


def _act(answer: dict[str, Any]) -> Act:
    actions = answer["actions"]
    return Act(
        actions=np.asarray(actions["data"], np.float32).reshape(actions["shape"]),
        tokens=answer["tokens"],
        logprobs=answer["logprobs"],
        decode_ok=answer["decode_ok"],
        timing=answer["policy_timing"],
    )
