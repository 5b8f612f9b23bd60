"""Requests that belong to no run: as they are sent, and the private parts of the SDK that they need."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from tinker import types
from tinker._base_client import AsyncAPIClient
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

import mint.mint as mintx
from mint.client.services import ask, call


class Http:
    """Notes what is sent, and answers each with what comes next."""

    def __init__(self, answers: list[Any]) -> None:
        self.sent: list[tuple[str, str, Any]] = []
        self.answers = answers

    async def post(self, path: str, *, body: bytes | None, options: dict[str, Any], cast_to: type) -> Any:
        assert options == {"headers": {"Content-Type": "application/json"}}
        return self._answer("POST", path, body)

    async def delete(self, path: str, *, body: bytes | None, options: dict[str, Any], cast_to: type) -> Any:
        assert options == {}
        return self._answer("DELETE", path, body)

    def _answer(self, method: str, path: str, body: bytes | None) -> Any:
        self.sent.append((method, path, json.loads(body) if body else None))
        return self.answers.pop(0)


class Service:
    """A service client and its holder, which runs what it is given at once and returns its result."""

    def __init__(self, *answers: Any) -> None:
        self.http = Http(list(answers))
        self.holder = self

    def get_session_id(self) -> str:
        return "session-1"

    @contextmanager
    def aclient(self, pool: ClientConnectionPoolType) -> Iterator[Http]:
        assert pool is ClientConnectionPoolType.SAMPLE
        yield self.http

    async def execute_with_retries(self, function: Any) -> Any:
        return await function()

    def run_coroutine_threadsafe(self, coroutine: Any) -> Any:
        return asyncio.run(coroutine)


def test_the_private_parts_are_where_they_were() -> None:
    for method in (AsyncAPIClient.post, AsyncAPIClient.delete):
        assert {"cast_to", "body", "options"} <= set(inspect.signature(method).parameters)
    assert ClientConnectionPoolType.SAMPLE


def observation() -> mintx.openpi.Observation:
    whole = types.ModelInput.from_ints([1, 2])
    return mintx.openpi.Observation(whole, np.array([0.5, -1], np.float32))


def test_a_session_is_made_used_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    acted = {
        "actions": {"data": [1.0, 2.0, 3.0, 4.0], "shape": [2, 2], "dtype": "float32"},
        "tokens": [7, 8],
        "logprobs": [-0.5, -1.5],
        "decode_ok": True,
        "policy_timing": {"infer_ms": 3.0},
    }
    results = [acted, {"results": [acted, acted]}]

    class Future:
        """What the SDK makes of an accepted request."""

        def __init__(self, model: type, holder: Any, accepted: Any, **_: Any) -> None:
            assert (model, accepted.request_id) == (dict, "r-1")

        def __await__(self) -> Iterator[Any]:
            yield from ()
            return results.pop(0)

    monkeypatch.setattr("tinker.lib.api_future_impl._APIFuture", Future)
    service: Any = Service({"action_session_id": "a-1"}, {"request_id": "r-1"}, {"request_id": "r-1"}, {})
    session: Any = mintx.create_action_session(service, model_path="tinker://r/sampler_weights/x")
    act: Any = session.act(observation())
    batch: Any = session.act_batch([observation()] * 2, temperature=1, seed=5)
    session.delete()

    assert act.actions.tolist() == [[1, 2], [3, 4]]
    assert (act.tokens, act.logprobs, act.decode_ok) == ([7, 8], [-0.5, -1.5], True)
    assert act.timing == {"infer_ms": 3.0}
    assert [each.tokens for each in batch] == [[7, 8]] * 2
    seen = {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
        "state": {"data": [0.5, -1.0], "dtype": "float32", "shape": [2]},
    }
    path = "/api/v1/mint/action_sessions"
    assert service.http.sent == [
        ("POST", path, {"session_id": "session-1", "model_path": "tinker://r/sampler_weights/x"}),
        ("POST", f"{path}/a-1/act", {"observation": seen, "seq_id": 1, "temperature": 0.0}),
        ("POST", f"{path}/a-1/act_batch", {"observations": [seen] * 2, "seq_id": 2, "temperature": 1.0, "seed": 5}),
        ("DELETE", f"{path}/a-1", None),
    ]


def test_what_is_no_json_is_not_sent() -> None:
    service: Any = Service()
    with pytest.raises(ValueError, match="not JSON compliant"):
        ask(service, "x", {"temperature": float("nan")}, lambda answer: answer)
    with pytest.raises(TypeError):
        call(service, "POST", "x", {"y": object()}, lambda answer: answer)
    assert not service.http.sent
