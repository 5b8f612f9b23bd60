"""Large answers are written off the event loop."""

from __future__ import annotations

from threading import current_thread, main_thread
from typing import Any

import pytest

from mint.server.openai import answers

from .world import OpenAIWorld, play


@pytest.mark.parametrize("limit", [0, 4096])
@pytest.mark.parametrize("route", ["chat", "complete"])
def test_a_large_answer_is_written_in_a_thread(
    world: OpenAIWorld, monkeypatch: pytest.MonkeyPatch, route: str, limit: int
) -> None:
    async def scene() -> None:
        async with world() as it:
            answer = await getattr(it, route)(n=2)
            assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
            assert threads == [limit > 0]

    threads: list[bool] = []
    encode = answers.encode

    def watched(answer: Any) -> str:
        threads.append(current_thread() is main_thread())
        return encode(answer)

    monkeypatch.setattr(answers, "encode", watched)
    monkeypatch.setattr(answers, "LARGE_ANSWER", limit)
    play(scene)
