"""Refusals: OpenAI's shape, with the parameter, and nothing done."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from mint.errors import BadRequestError

from .world import ALICE, OpenAIWorld, play

F = {"type": "function", "function": {"name": "f"}}
BAD_SCHEMA = {"type": "object", "properties": {"a": {"not": {}}}}
BAD = {"type": "function", "function": {"name": "bad", "parameters": BAD_SCHEMA}}
DEEP = '{"items":' * 5000 + "{}" + "}" * 5000
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"presence_penalty": -1}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty", "unknown_parameter"),
        ({"extra_body": {"structured_outputs": {"choice": ["a"]}}}, "structured_outputs.choice", "unknown_parameter"),
        ({"max_tokens": 600}, "max_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "context_length_exceeded"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"n": 0}, "n", None),
        ({"n": 129}, "n", None),
        ({"temperature": -1}, "temperature", None),
        ({"top_p": 1.5}, "top_p", None),
        ({"seed": 1 << 63}, "seed", None),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", None),
        ({"stop": ""}, "stop.0", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "user"}]}, "messages.0", None),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages.0.content",
            None,
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        ({"response_format": {"type": "json_object"}, "extra_body": {"guided_regex": "a"}}, "response_format", None),
        ({"extra_body": {"guided_json": "no json"}}, "guided_json", None),
        ({"extra_body": {"guided_json": DEEP}}, "guided_json", None),
        ({"extra_body": {"guided_json": DEEP[: 9 * 200] + "{}" + "}" * 200}}, "guided_json", None),
        ({"extra_body": {"guided_json": BAD_SCHEMA}}, "guided_json", None),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", None),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs.regex", None),
        (
            {"model": "hermes", "tools": [F, BAD], "tool_choice": {**BAD, "function": {"name": "bad"}}},
            "tools.1.function.parameters",
            None,
        ),
        ({"model": "hermes", "tools": [F, BAD], "tool_choice": "required"}, "tools", None),
        ({"n": 128, "logprobs": True, "top_logprobs": 20, "max_tokens": 480}, "max_tokens", None),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs", None),
        ({"tools": [F]}, "tools", None),
        ({"model": "hermes", "tools": [STRICT]}, "tools.0.function.strict", None),
        ({"model": "hermes", "tools": [F], "response_format": {"type": "json_object"}}, "tools", None),
        ({"model": "hermes", "tools": [F], "tool_choice": {**F, "function": {"name": "g"}}}, "tool_choice", None),
        ({"model": "hermes", "tools": [F], "tool_choice": "always"}, "tool_choice.mode", None),
        ({"model": "hermes", "tool_choice": "required"}, "tool_choice", None),
    ],
)
def test_a_bad_parameter_is_named(world: OpenAIWorld, request_: dict[str, Any], param: str, code: str | None) -> None:
    async def scene() -> None:
        async with world() as it:
            with pytest.raises(openai.BadRequestError) as refused:
                await it.chat(**request_)
            assert (refused.value.param, refused.value.code) == (param, code)
            assert refused.value.type == "invalid_request_error"
            assert it.draws == []

    play(scene)


def test_the_answer_of_completions_is_bounded(world: OpenAIWorld) -> None:
    """With `echo`, the prompt is a part of it."""

    async def scene() -> None:
        async with world() as it:
            large = {"n": 128, "logprobs": 20, "max_tokens": 100}
            await it.complete([5] * 400, **large)
            with pytest.raises(openai.BadRequestError, match="it may be 1048576") as refused:
                await it.complete([5] * 400, echo=True, **large)
            assert refused.value.param == "max_tokens"
            assert len(it.draws) == 1

    play(scene)


def test_a_body_is_bounded(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            with pytest.raises(openai.APIStatusError, match="larger than 8388608 bytes") as refused:
                await it.complete("a" * (8 << 20))
            assert refused.value.status_code == 413

    play(scene)


def test_what_asks_for_nothing_is_accepted(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            nothing = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "store": False, "user": "me"}
            answer = await it.chat(**nothing, stop=None, extra_body={"reasoning_effort": None, "tools": None})
            assert answer.choices[0].message.content == "Hello"

    play(scene)


@pytest.mark.parametrize("name", ["nope", "tinker://a/sampler_weights/b"])
def test_unknown_models(world: OpenAIWorld, name: str) -> None:
    async def scene() -> None:
        async with world() as it:
            for call in (it.chat(model=name), it.alice.models.retrieve(name)):
                with pytest.raises(openai.NotFoundError) as refused:
                    await call
                assert (refused.value.param, refused.value.code) == ("model", "model_not_found")

    play(scene)


def test_keys(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it, openai.AsyncOpenAI(base_url=f"{it.url}/v1", api_key="sk-nobody-knows") as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                await stranger.models.list()
            assert refused.value.code == "invalid_api_key"
            async with httpx.AsyncClient(base_url=it.url) as http:
                assert (await http.get("/v1/models")).status_code == 401
                assert (await http.get("/v1/models", headers={"X-API-Key": ALICE})).status_code == 200
                plain = {"X-API-Key": ALICE, "Content-Type": "application/json"}
                broken = await http.post("/v1/chat/completions", content=b"{", headers=plain)
                assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
                # Tinker's routes keep their shape
                assert "detail" in (await http.post("/api/v1/create_session", json={})).json()
            assert {model.id for model in (await it.bob.models.list()).data} == {"base", "hermes", "llama", "plain"}

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_has_its_status(world: OpenAIWorld, stream: bool) -> None:
    async def scene() -> None:
        async with world(failure=BadRequestError("is no schema", field="response_format")) as it:
            with pytest.raises(openai.BadRequestError, match="is no schema") as refused:
                await it.chat(stream=stream)
            assert refused.value.param == "response_format"

    play(scene)
