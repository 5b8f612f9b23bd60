"""A server with a real engine, asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

import mint
from mint.tiny import NAME
from tests.server.live import ALICE, BOB, LiveServer
from tests.server.sdk import SECONDS, run_of, train

HELLO = [{"role": "user", "content": "Which is larger, 3 or 8?"}]


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/oai/api/v1", api_key=ALICE, max_retries=0) as client:
        yield client


def test_the_models(client: openai.OpenAI, live: LiveServer) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME
    assert client.models.retrieve(NAME) == model
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=ALICE) as other:
        assert other.models.list().data == [model]


def test_a_seed_settles_a_chat_whole_or_streamed(client: openai.OpenAI) -> None:
    def say(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=NAME, messages=HELLO, seed=seed, n=3, max_tokens=12, temperature=2.0
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 5
        return [choice.message.content for choice in answer.choices]

    texts = say(1)
    assert say(1) == texts != say(2)
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    with client.chat.completions.create(
        model=NAME,
        messages=HELLO,
        seed=1,
        n=3,
        max_tokens=12,
        temperature=2.0,
        stream=True,
        stream_options={"include_usage": True},
    ) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert chunk.usage is not None


def test_echoed_log_probabilities_are_those_that_were_sampled(client: openai.OpenAI) -> None:
    drawn = client.completions.create(model=NAME, prompt="One day a fox", max_tokens=8, logprobs=0, seed=3)
    text = "One day a fox" + drawn.choices[0].text
    scored = client.completions.create(model=NAME, prompt=text, max_tokens=0, logprobs=0, echo=True)
    sampled, echoed = drawn.choices[0].logprobs, scored.choices[0].logprobs
    assert sampled is not None
    assert echoed is not None
    assert sampled.tokens
    count = len(sampled.tokens)
    assert echoed.tokens[-count:] == sampled.tokens  # the text is tokenized as it was drawn
    np.testing.assert_allclose(echoed.token_logprobs[-count:], sampled.token_logprobs, atol=1e-4)
    assert scored.choices[0].text == text


def test_a_revision_is_sampled_by_its_owner_until_it_is_published(
    client: openai.OpenAI, alice: mint.ServiceClient, live: LiveServer
) -> None:
    run = run_of(alice)
    train(run, 0, 3)
    path = run.save_weights_for_sampler("v1").result(SECONDS).path
    assert client.models.retrieve(path).id == path

    def score(model: str, who: openai.OpenAI = client) -> list[float | None]:
        answer = who.completions.create(model=model, prompt="One day a fox", max_tokens=0, logprobs=0, echo=True)
        assert answer.choices[0].logprobs is not None
        return answer.choices[0].logprobs.token_logprobs or []

    assert score(path) == score(path)
    assert not np.allclose(score(path)[1:], score(NAME)[1:], atol=1e-2)
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=BOB, max_retries=0) as stranger:
        for call in (lambda: score(path, stranger), lambda: stranger.models.retrieve(path)):
            with pytest.raises(openai.PermissionDeniedError) as refused:
                call()
            assert refused.value.body["code"] == "permission_denied"  # type: ignore[index]
        mint.RestClient(base_url=live.url, api_key=ALICE).publish_checkpoint_from_tinker_path(path).result(SECONDS)
        assert stranger.models.retrieve(path).id == path
        assert score(path, stranger) == score(path)


def test_the_server_process_has_not_loaded_torch(client: openai.OpenAI, live: LiveServer) -> None:
    client.chat.completions.create(model=NAME, messages=HELLO, max_tokens=2)
    assert live.process is not None
    assert "libtorch" not in Path(f"/proc/{live.process.pid}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{live.worker.pid}/maps").read_text()
