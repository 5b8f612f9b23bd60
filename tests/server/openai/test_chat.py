"""Chat completions in one piece."""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest

from mint.server.openai.tokenizer import load_tokenizer
from mint.tiny import model_path

from .world import OpenAIWorld, World, play


def prompt_of(it: World) -> str:
    return load_tokenizer(str(model_path()), 2048).text_of(it.draws[-1].command.prompt.tolist())[0]


def test_an_answer_with_its_usage(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["Hello"], cached_tokens=3) as it:
            answer = await it.chat("Say hello")
            (choice,) = answer.choices
            assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello", "stop")
            assert choice.logprobs is None
            assert answer.object == "chat.completion"
            draw = it.draws[0]
            assert prompt_of(it) == "<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\n"
            usage = answer.usage
            assert usage.prompt_tokens == len(draw.command.prompt)
            assert usage.completion_tokens == len(draw.sequences[0].tokens)
            assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
            assert usage.prompt_tokens_details.cached_tokens == 3

    play(scene)


def test_parameters_reach_the_engine(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            await it.chat(
                n=3,
                max_completion_tokens=7,
                temperature=0.5,
                top_p=0.9,
                seed=11,
                stop=["\n", "é"],
                extra_body={"top_k": 5},
            )
            command = it.draws[0].command
            params = command.params
            assert command.num_samples == 3
            assert command.revision is None
            assert not command.stream
            assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (7, 0.5, 0.9, 5)
            assert (params.seed, params.stop_bytes) == (11, (b"\n", "é".encode()))
            assert params.stop_token_ids == {2}
            await it.chat()
            await it.chat()
            first, second = (draw.command.params for draw in it.draws[1:])
            assert first.seed != second.seed
            # as far as the context goes
            assert first.max_tokens == 512 - len(it.draws[1].command.prompt)
            assert (first.temperature, first.top_p, first.top_k, first.constraint) == (1.0, 1.0, -1, None)

    play(scene)


def test_choices_and_log_probabilities(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["Hello é", "no"]) as it:
            answer = await it.chat(n=2, logprobs=True, top_logprobs=3)
            assert [choice.message.content for choice in answer.choices] == ["Hello é", "no"]
            assert [choice.index for choice in answer.choices] == [0, 1]
            draw = it.draws[0]
            assert draw.command.top_logprobs == 3
            for choice, sequence in zip(answer.choices, draw.sequences, strict=True):
                content = choice.logprobs.content
                spelled = b"".join(bytes(token.bytes) for token in content)
                assert spelled.decode() == choice.message.content
                # the end of the turn is no part of the content
                np.testing.assert_allclose([token.logprob for token in content], sequence.logprobs[:-1])
                for token in content:
                    own, other = token.top_logprobs  # the third place is empty
                    assert (own.token, own.logprob) == (token.token, token.logprob)
                    assert other.logprob == token.logprob - 1
            halves = [token.token for token in answer.choices[0].logprobs.content][-2:]
            assert halves == ["bytes:\\xc3", "bytes:\\xa9"]
            plain = await it.chat(logprobs=True)
            assert plain.choices[0].logprobs.content[0].top_logprobs == []

    play(scene)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", "two", "one "),
        ("one two three", ["ree", "ne tw"], "o"),
        ("one two", ["three"], "one two"),
        ("é and è", "è", "é and "),
        ("one<|im_start|>two", "<|im_start|>", "one"),
    ],
)
def test_stop_strings_are_no_part_of_the_text(world: OpenAIWorld, text: str, stop: object, expected: str) -> None:
    async def scene() -> None:
        async with world(texts=[text]) as it:
            (choice,) = (await it.chat(stop=stop)).choices
            assert (choice.message.content, choice.finish_reason) == (expected, "stop")

    play(scene)


def test_an_answer_cut_off_by_its_length_ends_with_a_whole_character(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["aéé"]) as it:
            answer = await it.chat(max_tokens=4, logprobs=True)
            (choice,) = answer.choices
            assert (choice.message.content, choice.finish_reason) == ("aé", "length")
            assert len(choice.logprobs.content) == answer.usage.completion_tokens == 4

    play(scene)


def test_messages_of_all_kinds(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            await it.chat(
                model="hermes",
                messages=[
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                        ],
                    },
                    {"role": "tool", "content": "2", "tool_call_id": "1"},
                ],
                extra_body={"chat_template_kwargs": {"quiet": True}},
            )
            assert prompt_of(it) == (
                "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
                '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n'
                "<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n<think></think>"
            )

    play(scene)


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("request_", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
            "json_schema",
            json.dumps(SCHEMA),
        ),
        ({"extra_body": {"guided_regex": "[a-c]+"}}, "regex", "[a-c]+"),
        ({"extra_body": {"guided_json": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
        ({"extra_body": {"guided_json": json.dumps(SCHEMA)}}, "json_schema", json.dumps(SCHEMA)),
        ({"extra_body": {"structured_outputs": {"regex": "a|b"}}}, "regex", "a|b"),
        ({"extra_body": {"structured_outputs": {"json": SCHEMA}}}, "json_schema", json.dumps(SCHEMA)),
    ],
)
def test_constraints(world: OpenAIWorld, request_: dict[str, object], kind: str, text: str) -> None:
    async def scene() -> None:
        async with world() as it:
            await it.chat(**request_)
            constraint = it.draws[0].command.params.constraint
            assert constraint is not None
            assert (constraint.kind, constraint.text) == (kind, text)
            await it.chat(response_format={"type": "text"})
            assert it.draws[1].command.params.constraint is None

    play(scene)


def test_a_model_without_a_chat_template_says_so(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            with pytest.raises(openai.BadRequestError, match="plain has no chat template") as refused:
                await it.chat(model="plain")
            assert refused.value.param == "model"
            assert (await it.complete(model="plain")).choices[0].text == "Hello"

    play(scene)


def test_what_a_template_refuses_is_a_refusal_of_the_messages(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            with pytest.raises(openai.BadRequestError, match="the user speaks first") as refused:
                await it.chat(model="llama", messages=[{"role": "assistant", "content": "hi"}])
            assert refused.value.param == "messages"

    play(scene)
