"""Streams: what is told when, and what happens when one side goes."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from mint.server.openai.tokenizer import load_tokenizer
from mint.tiny import model_path

from .world import OpenAIWorld, play, until


async def told(stream: Any) -> Any:
    """The next piece of content."""
    while True:
        chunk = await anext(stream)
        if chunk.choices and chunk.choices[0].delta.content:
            return chunk.choices[0].delta.content


def test_text_comes_as_it_is_drawn_and_in_whole_characters(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["aé b"], by_hand=True) as it:
            asked = asyncio.ensure_future(it.chat(stream=True))
            draw = await it.drawing()
            assert draw.command.stream
            spelled = load_tokenizer(str(model_path()), 2048).bytes_of
            assert [spelled[token] for token in draw.sequences[0].tokens.tolist()[:-1]] == [
                b"a",
                b"\xc3",
                b"\xa9",
                b" b",
            ]
            draw.tell()
            stream = aiter(await asked)
            first = await anext(stream)
            assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
            assert await told(stream) == "a"
            draw.tell()
            next_piece = asyncio.ensure_future(told(stream))
            await asyncio.sleep(0.1)
            assert not next_piece.done()
            draw.tell()
            assert await next_piece == "é"
            draw.tell(9)
            assert await told(stream) == " b"
            draw.finish()
            (last,) = [chunk async for chunk in stream]
            assert last.choices[0].finish_reason == "stop"
            assert last.choices[0].delta.content is None

    play(scene)


def test_the_beginning_of_a_stop_string_is_held_back(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["a b c"], by_hand=True) as it:
            asked = asyncio.ensure_future(it.chat(stream=True, stop=" b d"))
            draw = await it.drawing()
            draw.tell(2)
            stream = aiter(await asked)
            assert await told(stream) == "a"
            draw.tell(9)
            assert await told(stream) == " b c"
            draw.finish()
            assert [chunk.choices[0].finish_reason async for chunk in stream] == ["stop"]

    play(scene)


@pytest.mark.parametrize("stop", [None, "two", "o thr"])
def test_a_stream_says_what_the_whole_answer_says(world: OpenAIWorld, stop: str | None) -> None:
    async def scene() -> None:
        async with world(texts=["one é two three", "€"], cached_tokens=2) as it:
            request: dict[str, Any] = {"n": 2, "stop": stop, "logprobs": True, "top_logprobs": 2}
            whole = await it.chat(**request)
            options = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = [chunk async for chunk in await it.chat(**request, **options)]
            assert chunks[-1].choices == []
            assert chunks[-1].usage == whole.usage
            assert {chunk.usage for chunk in chunks[:-1]} == {None}
            assert len({chunk.id for chunk in chunks}) == 1
            for choice in whole.choices:
                mine = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
                assert "".join(part.delta.content or "" for part in mine) == choice.message.content
                tokens = [token for part in mine if part.logprobs for token in part.logprobs.content]
                assert tokens == choice.logprobs.content
                assert [part.finish_reason for part in mine if part.finish_reason] == [choice.finish_reason]

    play(scene)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_before_the_first_token_cancels_its_sample(world: OpenAIWorld, stream: bool) -> None:
    async def scene() -> None:
        async with world(by_hand=True) as it:
            asked = asyncio.ensure_future(it.chat(stream=stream))
            draw = await it.drawing()
            await asyncio.sleep(0.05)
            assert not draw.answer.done()
            asked.cancel()
            await until(draw.answer.cancelled)

    play(scene)


def test_a_client_that_goes_in_the_middle_cancels_all_its_samples(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["a b c"], by_hand=True) as it:
            asked = asyncio.ensure_future(it.complete(["x", "y"], stream=True))
            await it.drawing(2)
            it.draws[0].tell()
            stream = await asked
            await anext(aiter(stream))
            assert not any(draw.answer.done() for draw in it.draws)
            await stream.close()
            await until(lambda: all(draw.answer.cancelled() for draw in it.draws))

    play(scene)


def test_one_failure_cancels_the_others(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(by_hand=True) as it:
            asked = asyncio.ensure_future(it.complete(["x", "y"]))
            await it.drawing(2)
            it.draws[0].answer.set_exception(RuntimeError("broken"))
            with pytest.raises(openai.InternalServerError, match="its log says more") as failed:
                await asked
            assert failed.value.type == "server_error"
            await until(it.draws[1].answer.cancelled)

    play(scene)


def test_a_worker_that_dies_before_anything_was_streamed_is_not_noticed(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(by_hand=True) as it:
            streamed = asyncio.ensure_future(it.chat(stream=True))
            await it.drawing(1)
            whole = asyncio.ensure_future(it.chat())
            await it.drawing(2)
            it.workers[0].die()
            await it.drawing(4)
            for draw in it.draws[2:]:
                draw.run()
            assert (await whole).choices[0].message.content == "Hello"
            assert "".join([c.choices[0].delta.content or "" async for c in await streamed]) == "Hello"

    play(scene)


def test_a_worker_that_dies_in_the_middle_of_a_stream_ends_it_with_an_error(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["a b c"], by_hand=True) as it:
            asked = asyncio.ensure_future(it.chat(stream=True))
            (await it.drawing()).tell()
            stream = aiter(await asked)
            assert await told(stream) == "a"
            it.workers[0].die()
            with pytest.raises(openai.APIError, match="in the middle of this answer") as ended:
                await told(stream)
            assert ended.value.type == "server_error"

    play(scene)
