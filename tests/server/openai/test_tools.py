"""Tools: shown with the model's template, and their calls read out of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.server.openai.tools import Call, HermesFormat, LlamaFormat, SomeCalls, ToolFormat

from .test_chat import prompt_of
from .world import OpenAIWorld, play

NAMES = frozenset({"add", "now"})
ADD, NOW = Call("add", '{"x": 1}'), Call("now", "{}")
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]


def hermes(value: object, closed: bool = True) -> str:
    return f"<tool_call>\n{json.dumps(value)}\n" + ("</tool_call>" if closed else "")


ONE, TWO = {"name": "add", "arguments": {"x": 1}}, {"name": "now", "arguments": {}}


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (hermes(ONE), "", [ADD]),
        (f"Let me see.\n{hermes(ONE)}\n{hermes(TWO)}\n", "Let me see.", [ADD, NOW]),
        (hermes(ONE, closed=False), "", [ADD]),
        ("no call ", "no call ", []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        (hermes({"name": "other", "arguments": {}}), hermes({"name": "other", "arguments": {}}), []),
        (hermes({"name": "add", "arguments": 3}), hermes({"name": "add", "arguments": 3}), []),
        (f"<tool_call>3</tool_call>{hermes(ONE)}", "<tool_call>3</tool_call>", [ADD]),
        ("a <tool_", "a <tool_", []),
    ],
)
def test_hermes(text: str, content: str, calls: list[Call]) -> None:
    assert HermesFormat(NAMES).split(text) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "add", "parameters": {"x": 1}}', "", [ADD]),
        ('\n{"name": "add", "parameters": {"x": 1}}; {"name": "now", "parameters": {}}', "", [ADD, NOW]),
        ('{"name": "add", "parameters": {"x": 1}} as I said', '{"name": "add", "parameters": {"x": 1}} as I said', []),
        ('{"answer": 3}', '{"answer": 3}', []),
        ("plain", "plain", []),
        ("", "", []),
    ],
)
def test_llama(text: str, content: str, calls: list[Call]) -> None:
    assert LlamaFormat(NAMES).split(text) == (content, calls)


PARTS = ["a", " ", "\n", "<", "<tool_call>", "</tool_call>", json.dumps(ONE), "{", "}", ";"]


@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=12), kind=st.sampled_from([HermesFormat, LlamaFormat, SomeCalls])
)
def test_what_was_settled_early_is_in_the_content(parts: list[str], kind: type[Any]) -> None:
    tool_format: ToolFormat = kind(NAMES)
    text = "".join(parts)
    content, _ = tool_format.split(text)
    for end in range(len(text) + 1):
        assert content.startswith(text[: tool_format.settled(text[:end])])


def answers(model: str) -> str:
    return hermes(ONE) if model == "hermes" else '{"name": "add", "parameters": {"x": 1}}'


@pytest.mark.parametrize("model", ["hermes", "llama"])
def test_the_model_calls_a_tool(world: OpenAIWorld, model: str) -> None:
    async def scene() -> None:
        async with world(texts=[answers(model)]) as it:
            choice = (await it.chat(model=model, tools=TOOLS)).choices[0]
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            (call,) = choice.message.tool_calls
            assert (call.type, call.function.name, call.function.arguments) == ("function", "add", '{"x": 1}')
            assert '"description": "Adds.", "parameters": {"type": "object", "properties"' in prompt_of(it)
            assert it.draws[0].command.params.constraint is None

            chunks = [chunk async for chunk in await it.chat(model=model, tools=TOOLS, stream=True)]
            deltas = [chunk.choices[0].delta for chunk in chunks]
            assert "".join(delta.content or "" for delta in deltas) == ""
            (streamed,) = [part for delta in deltas for part in delta.tool_calls or []]
            assert (streamed.index, streamed.function.name, streamed.function.arguments) == (0, "add", '{"x": 1}')
            assert chunks[-1].choices[0].finish_reason == "tool_calls"

    play(scene)


def test_text_before_a_call_is_streamed_as_it_comes(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=[f"Let me see. {hermes(ONE)}{hermes(TWO)}"]) as it:
            chunks = [chunk async for chunk in await it.chat(model="hermes", tools=TOOLS, stream=True)]
            contents = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
            assert "".join(contents) == "Let me see."
            assert len(contents) > 2
            calls = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
            assert [(call.index, call.function.name) for call in calls] == [(0, "add"), (1, "now")]
            assert len({call.id for call in calls}) == 2
            one = await it.chat(model="hermes", tools=TOOLS, parallel_tool_calls=False)
            assert [call.function.name for call in one.choices[0].message.tool_calls] == ["add"]

    play(scene)


def test_without_a_call_the_answer_is_text(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["3 < 4 "]) as it:
            choice = (await it.chat(model="hermes", tools=TOOLS)).choices[0]
            assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("3 < 4 ", None, "stop")
            stream = await it.chat(model="hermes", tools=TOOLS, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "3 < 4 "

    play(scene)


def test_tools_that_must_not_be_called_are_not_shown(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=[hermes(ONE)]) as it:
            choice = (await it.chat(model="hermes", tools=TOOLS, tool_choice="none")).choices[0]
            assert (choice.message.content, choice.message.tool_calls) == (hermes(ONE), None)
            assert "Adds." not in prompt_of(it)

    play(scene)


def test_a_named_tool_is_forced_by_the_schema_of_its_arguments(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=['{"x": 7}', '{"x": ']) as it:
            choice = {"type": "function", "function": {"name": "add"}}
            first, second = (await it.chat(model="hermes", tools=TOOLS, tool_choice=choice, n=2)).choices
            assert first.message.tool_calls[0].function.arguments == '{"x": 7}'
            assert (second.message.content, second.message.tool_calls) == ('{"x": ', None)  # cut off
            constraint = it.draws[0].command.params.constraint
            assert constraint is not None
            assert (constraint.kind, json.loads(constraint.text)) == ("json_schema", PARAMETERS)

    play(scene)


@pytest.mark.parametrize("parallel", [True, False])
def test_some_call_is_forced_by_a_schema_of_calls(world: OpenAIWorld, parallel: bool) -> None:
    async def scene() -> None:
        async with world(texts=[json.dumps([ONE])]) as it:
            request: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": parallel}
            answer = await it.chat(model="hermes", **request)
            (call,) = answer.choices[0].message.tool_calls
            assert (call.function.name, call.function.arguments) == ("add", '{"x": 1}')
            constraint = it.draws[0].command.params.constraint
            assert constraint is not None
            schema = json.loads(constraint.text)
            assert (schema["minItems"], schema.get("maxItems")) == (1, None if parallel else 1)
            offered = [item["properties"]["name"]["const"] for item in schema["items"]["anyOf"]]
            assert offered == ["add", "now"]
            assert schema["items"]["anyOf"][0]["properties"]["arguments"] == PARAMETERS

    play(scene)
