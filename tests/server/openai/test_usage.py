"""What OpenAI's requests use is counted beside everything else."""

from __future__ import annotations

import asyncio

import httpx

from ..test_admin import amounts, window
from .world import ALICE, BOB, OpenAIWorld, World, play, until


async def used(world: World, key: str) -> dict[tuple[str, str, bool], int]:
    async with httpx.AsyncClient(base_url=world.url, headers={"X-API-Key": key}) as http:
        answer = (await http.get("/api/v1/billing/usage/events", params=window())).json()
    assert {(event["base_model"], event["session_id"]) for event in answer["data"]} <= {("base", None)}
    return amounts(answer)


def test_usage_is_what_answers_say(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(texts=["one two", "three"], cached_tokens=3) as it:
            chat = (await it.chat(n=2)).usage
            options = {"stream": True, "stream_options": {"include_usage": True}}
            streamed = [chunk async for chunk in await it.complete(["a b c d", "e f g h"], **options)][-1].usage
            echoed = (await it.complete("i j k l", max_tokens=0, echo=True)).usage
            assert echoed.completion_tokens == 0
            answers = (chat, streamed, echoed)
            cached = sum(usage.prompt_tokens_details.cached_tokens for usage in answers)
            prompts = sum(usage.prompt_tokens for usage in answers)
            drawn = sum(usage.completion_tokens for usage in answers)
            assert await used(it, ALICE) == {
                ("openai", "sampling_prefill", False): prompts - cached,
                ("openai", "sampling_prefill", True): cached,
                ("openai", "sampling_sample", False): drawn,
            }
            assert await used(it, BOB) == {}

    play(scene)


def test_an_answer_that_nobody_waited_for_is_not_counted(world: OpenAIWorld) -> None:
    async def scene() -> None:
        async with world(by_hand=True) as it:
            asked = asyncio.ensure_future(it.chat(stream=True))
            (await it.drawing()).tell()
            await (await asked).close()
            await until(it.draws[0].answer.cancelled)
            assert await used(it, ALICE) == {}

    play(scene)
