"""Completions."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest

from mint.server.openai.tokenizer import load_tokenizer
from mint.tiny import model_path

from .world import OpenAIWorld, play

TOKENIZER = load_tokenizer(str(model_path()), 2048)
TEXT = "Hé two"
TOKENS = TOKENIZER.encode(TEXT)[0].tolist()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (TEXT, [TOKENS]),
        (TOKENS, [TOKENS]),
        ([TEXT, "b"], [TOKENS, TOKENIZER.encode("b")[0].tolist()]),
        ([TOKENS, [5, 6]], [TOKENS, [5, 6]]),
    ],
    ids=["text", "tokens", "texts", "lists of tokens"],
)
def test_all_ways_to_write_a_prompt(world: OpenAIWorld, prompt: Any, expected: list[list[int]]) -> None:
    async def scene() -> None:
        async with world(texts=["x", "y"]) as it:
            answer = await it.complete(prompt, n=2)
            assert [draw.command.prompt.tolist() for draw in it.draws] == expected
            assert [choice.text for choice in answer.choices] == ["x", "y"] * len(expected)
            assert [choice.index for choice in answer.choices] == list(range(2 * len(expected)))
            assert answer.usage.prompt_tokens == sum(map(len, expected))
            assert answer.usage.completion_tokens == 4 * len(expected)
            assert {draw.command.params.max_tokens for draw in it.draws} == {16}
            assert (answer.object, answer.choices[0].logprobs) == ("text_completion", None)

    play(scene)


def test_log_probabilities_with_their_places(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["aé two"]) as it:
            (choice,) = (await it.complete("Q: ", logprobs=2)).choices
            logprobs = choice.logprobs
            assert choice.text == "aé two"
            assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", " two"]
            assert logprobs.text_offset == [0, 1, 1, 2]
            np.testing.assert_allclose(logprobs.token_logprobs, [-0.25, -0.5, -0.75, -1])
            for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
                assert top == {token: value}

    play(scene)


@pytest.mark.parametrize("prompt", [TEXT, TOKENS], ids=["text", "tokens"])
def test_echo_begins_with_the_prompt(world: OpenAIWorld, prompt: Any) -> None:
    async def scene() -> None:
        async with world(texts=["!"]) as it:
            (choice,) = (await it.complete(prompt, echo=True, logprobs=1)).choices
            assert choice.text == TEXT + "!"
            count = len(TOKENS)
            assert choice.logprobs.token_logprobs == [None, *(-float(i) for i in range(1, count)), -0.25]
            assert choice.logprobs.top_logprobs[0] is None
            assert choice.logprobs.top_logprobs[1] == {TOKENIZER.spell(TOKENS[1]): -1.0}
            assert choice.logprobs.tokens == [TOKENIZER.spell(token) for token in TOKENS] + ["!"]
            assert choice.logprobs.text_offset[-1] == len(TEXT)
            assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)
            assert it.draws[0].command.query.top == 1
            (plain,) = (await it.complete(prompt, echo=True)).choices
            assert plain.text == TEXT + "!"
            assert it.draws[1].command.query.last == 0

    play(scene)


def test_the_prompt_alone_can_be_scored(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world() as it:
            answer = await it.complete(TEXT, echo=True, logprobs=0, max_tokens=0)
            (choice,) = answer.choices
            assert (choice.text, choice.finish_reason) == (TEXT, "length")
            assert choice.logprobs.token_logprobs == [None, *(-float(i) for i in range(1, len(TOKENS)))]
            assert answer.usage.completion_tokens == 0

    play(scene)


def test_streams_of_several_prompts(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["ab cd", "é"]) as it:
            chunks = [chunk async for chunk in await it.complete(["P", "Q"], n=2, stream=True, echo=True)]
            texts = ["", "", "", ""]
            reasons = {}
            for choice in (choice for chunk in chunks for choice in chunk.choices):
                texts[choice.index] += choice.text
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
            assert texts == ["Pab cd", "Pé", "Qab cd", "Qé"]
            assert reasons == dict.fromkeys(range(4), "stop")

    play(scene)


def test_streamed_log_probabilities_are_those_of_the_whole(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["one é two"]) as it:
            whole = (await it.complete(logprobs=1, stop="two")).choices[0].logprobs
            chunks = [chunk async for chunk in await it.complete(logprobs=1, stop="two", stream=True)]
            streamed = [chunk.choices[0].logprobs for chunk in chunks]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [item for part in streamed for item in getattr(part, name)] == getattr(whole, name)
            assert "".join(chunk.choices[0].text for chunk in chunks) == "one é "

    play(scene)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [5000]}, "prompt"),
        ({"prompt": [2**64 - 1]}, "prompt"),
        ({"prompt": [2**80]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"prompt": [5] * 512}, "prompt"),
        ({"max_tokens": 512}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
    ],
)
def test_refusals(world: OpenAIWorld, request_: dict[str, Any], param: str) -> None:
    async def scene() -> None:
        async with world() as it:
            with pytest.raises(openai.BadRequestError) as refused:
                await it.complete(**request_)
            assert refused.value.param == param
            assert it.draws == []

    play(scene)
