"""Odd values in good requests of OpenAI's clients: a refusal that says why, never an error of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from mint.server.openai.requests import ChatRequest

from ..test_bad_input import NESTED, variants
from .world import ALICE, OpenAIWorld

BODIES: dict[str, dict[str, Any]] = {
    "completions": {
        "model": "base",
        "prompt": "a",
        "max_tokens": 1,
        "stop": ["b"],
        "logprobs": 1,
        "seed": 1,
        "top_k": 1,
        "guided_json": {"type": "object"},
        "metadata": {"a": "b"},
    },
    "chat/completions": {
        "model": "base",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_completion_tokens": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"a": "b"},
        "temperature": 1.0,
    },
}
TOOLS: dict[str, Any] = {
    "model": "hermes",
    "messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
}


def test_a_body_that_could_just_be_parsed_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"items": deep}
    with pytest.raises(ValidationError, match="nested too deeply"):
        ChatRequest.model_validate({**BODIES["chat/completions"], "guided_json": deep})


def test_odd_values_are_refused_or_taken(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it, httpx.AsyncClient(base_url=it.url, headers={"X-API-Key": ALICE}) as http:
            statuses = []
            for route, body in (*BODIES.items(), ("chat/completions", TOOLS)):
                for content in [json.dumps(each) for each in (body, *variants(body))] + list(NESTED):
                    headers = {"Content-Type": "application/json"}
                    response = await http.post(f"/v1/{route}", content=content, headers=headers)
                    assert response.status_code < 500, (route, content[:300], response.text)
                    assert response.status_code == 200 or response.json()["error"]["message"]
                    statuses.append(response.status_code)
            assert statuses.count(400) > 300
            assert statuses.count(200) > 50

    asyncio.run(scene())
