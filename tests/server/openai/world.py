"""The application behind a real socket, over workers that say what the test tells them; the client is OpenAI's."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from mint.config import EngineConfig, ModelSource, ServerConfig
from mint.dispatch import fleet
from mint.engine.core import (
    Command,
    OnProgress,
    Progress,
    PromptAnswer,
    Result,
    Sample,
    Sampled,
    SampledSequence,
    TopLogprobs,
    WorkerDiedError,
)
from mint.server.app import create_app
from mint.server.http import HttpServer
from mint.server.openai.tokenizer import load_tokenizer
from mint.tiny import model_path
from tests.dispatch.fakes import INFO, FakeWorker, play  # noqa: F401  # for those who use this module

ALICE, BOB = "sk-alice-secret", "sk-bob-secret"
END = 2
"""The built-in model's end of a turn."""

HERMES = """{% if tools %}<|im_start|>system
Call them as <tool_call>JSON</tool_call>:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if quiet %}<think></think>{% endif %}"""
LLAMA = """{% if messages[0].role == "assistant" %}{{ raise_exception("the user speaks first") }}{% endif %}
{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>
{% for tool in tools or [] %}{{ tool | tojson }} {# answer {"name": …, "parameters": …} #}
Answer {"name": name, "parameters": arguments}.{% endfor %}{{ message.content }}<|eot_id|>{% endfor %}"""
TEMPLATES = {"base": None, "hermes": HERMES, "llama": LLAMA, "plain": ""}
"""By the name of the served model; None is the built-in model's own, "" is no template."""


@dataclass
class Draw:
    """A sample under way on the worker, which the test moves on."""

    command: Sample
    answer: asyncio.Future[Result]
    on_progress: OnProgress | None
    sequences: list[SampledSequence]
    cached_tokens: int = 0
    num_told: int = 0

    def tell(self, count: int = 1) -> None:
        """Stream the next tokens of all sequences."""
        part = slice(self.num_told, self.num_told + count)
        self.num_told += count
        drawn = {
            index: (s.tokens[part], s.logprobs[part], s.top and TopLogprobs(s.top.tokens[part], s.top.logprobs[part]))
            for index, s in enumerate(self.sequences)
            if len(s.tokens[part])
        }
        assert self.on_progress is not None
        if drawn:
            self.on_progress(Progress(drawn))

    def finish(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Sampled(tuple(self.sequences), _prompt_answer(self.command), self.cached_tokens))

    def run(self) -> None:
        for _ in range(max(len(s.tokens) for s in self.sequences) if self.command.stream else 0):
            self.tell()
        self.finish()


@dataclass
class Script:
    """What workers say: the texts of a request's sequences, in turn.

    `by_hand`: samples wait for the test. `failure`: what they fail with instead.
    """

    texts: list[str] = field(default_factory=lambda: ["Hello"])
    by_hand: bool = False
    failure: Exception | None = None
    cached_tokens: int = 0


class ScriptedWorker(FakeWorker):
    """Says what the script has, a token at a time, and stops where an engine would."""

    def __init__(self, source: ModelSource, script: Script) -> None:
        changes = {"name": source.name, "tokenizer": source.location, "vocab_size": 2048, "max_sample_length": 512}
        super().__init__(replace(INFO, **changes))
        self.draws: list[Draw] = []
        self._script = script
        self._tokenizer = load_tokenizer(source.location, 2048)

    @property
    def alive(self) -> bool:
        return not self.died.is_set()

    def execute(self, command: Command, on_progress: OnProgress | None = None) -> asyncio.Future[Result]:
        assert isinstance(command, Sample)
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self._script.failure is not None:
            answer.set_exception(self._script.failure)
            return answer
        sequences = [self._sequence(command, index) for index in range(command.num_samples)]
        draw = Draw(command, answer, on_progress, sequences, self._script.cached_tokens)
        self.draws.append(draw)
        if not self._script.by_hand:
            asyncio.get_running_loop().call_soon(draw.run)
        return answer

    def die(self) -> None:
        super().die()
        for draw in self.draws:
            if not draw.answer.done():
                draw.answer.set_exception(WorkerDiedError())

    def _sequence(self, command: Sample, index: int) -> SampledSequence:
        texts = self._script.texts
        spoken = [*self._tokenizer.encode(texts[index % len(texts)])[0].tolist(), END]
        tokens: list[int] = []
        said = b""
        reason = "length"
        for token in spoken[: command.params.max_tokens]:
            tokens.append(token)
            said += self._tokenizer.bytes_of[token]
            if token in command.params.stop_token_ids or any(stop in said for stop in command.params.stop_bytes):
                reason = "stop"
                break
        logprobs = -np.arange(1, len(tokens) + 1, dtype=np.float32) / 4
        top = _top(np.array(tokens, np.int32), logprobs, command.top_logprobs)
        return SampledSequence(np.array(tokens, np.int32), logprobs, "stop" if reason == "stop" else "length", top)


def _top(tokens: np.ndarray, logprobs: np.ndarray, count: int) -> TopLogprobs | None:
    """The token itself, then others; the last place of each row is empty."""
    if not count:
        return None
    others = np.tile(np.arange(300, 300 + count, dtype=np.int32), (len(tokens), 1))
    values = np.tile(logprobs[:, None] - 1, (1, count)).astype(np.float32)
    others[:, 0], values[:, 0] = tokens, logprobs
    if count > 1:
        others[:, -1], values[:, -1] = -1, -np.inf
    return TopLogprobs(others, values)


def _prompt_answer(command: Sample) -> PromptAnswer:
    if not command.query.last:
        return PromptAnswer()
    assert command.query.last == len(command.prompt) - 1
    logprobs = -np.arange(len(command.prompt), dtype=np.float32)
    logprobs[0] = np.nan
    return PromptAnswer(logprobs, _top(command.prompt, logprobs, command.query.top))


@dataclass
class World:
    """A running server. `workers` are in the order of their starts."""

    url: str
    script: Script
    workers: list[ScriptedWorker]
    alice: openai.AsyncOpenAI
    bob: openai.AsyncOpenAI

    @property
    def draws(self) -> list[Draw]:
        return [draw for worker in self.workers for draw in worker.draws]

    async def drawing(self, count: int = 1) -> Draw:
        """The last sample, once there are so many."""
        await until(lambda: len(self.draws) >= count)
        return self.draws[-1]

    async def chat(self, text: str = "hi", **request: Any) -> Any:
        body = {"model": "base", "messages": [{"role": "user", "content": text}], **request}
        return await self.alice.chat.completions.create(**body)

    async def complete(self, prompt: Any = "hi", **request: Any) -> Any:
        return await self.alice.completions.create(**{"model": "base", "prompt": prompt, **request})


async def until(happened: Callable[[], bool]) -> None:
    """Wait for it; `play` bounds the time."""
    while not happened():
        await asyncio.sleep(0.005)


def tokenizer_folder(name: str, folder: Path) -> str:
    """The built-in model's tokenizer with the chat template of a model of `TEMPLATES`."""
    if (template := TEMPLATES[name]) is None:
        return str(model_path())
    copy = folder / name
    copy.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_path() / file, copy)
    if template:
        (copy / "chat_template.jinja").write_text(template)
    return str(copy)


OpenAIWorld = Callable[..., Any]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenAIWorld:
    """`async with world(texts=…) as it`: a server of four models that say these texts."""

    @asynccontextmanager
    async def start(**script: Any) -> AsyncIterator[World]:
        plan = Script(**script)
        workers: list[ScriptedWorker] = []

        async def start_worker(source: ModelSource, _config: EngineConfig) -> ScriptedWorker:
            workers.append(ScriptedWorker(source, plan))
            return workers[-1]

        monkeypatch.setattr(fleet.LocalWorker, "start", start_worker)
        models = tuple(ModelSource(name, tokenizer_folder(name, tmp_path)) for name in TEMPLATES)
        server = HttpServer(create_app(ServerConfig(data_dir=tmp_path / "data", models=models, api_keys=(ALICE, BOB))))
        (tmp_path / "data").mkdir()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `mint serve` does
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with (
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ALICE, max_retries=0, timeout=10) as alice,
                openai.AsyncOpenAI(base_url=f"{url}/oai/api/v1", api_key=BOB, max_retries=0, timeout=10) as bob,
            ):
                yield World(url, plan, workers, alice, bob)
        finally:
            server.should_exit = True
            await serving

    return start
