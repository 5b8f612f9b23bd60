"""The routes: models, completions, chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from mint.engine.core import Sample
from mint.server.accounting import count_sample
from mint.server.dependencies import Owner, Ready
from mint.server.openai.answers import Answer, ChatAnswer, CompletionAnswer, EventStream
from mint.server.openai.choices import ChatChoice, ChatStyle, CompletionChoice
from mint.server.openai.drawing import Event, counted, draw, prompts_alone, while_connected
from mint.server.openai.errors import OpenAIRoute
from mint.server.openai.prompts import (
    Prompt,
    Target,
    chat_sample,
    completion_prompts,
    completion_samples,
    find_target,
)
from mint.server.openai.requests import ChatRequest, CompletionRequest, GenerationRequest
from mint.server.openai.text import TextStream
from mint.server.openai.tokenizer import Tokenizer, load_tokenizer
from mint.server.services import Services

PREFIXES = ("/oai/api/v1", "/v1")
STREAM = "openai"
"""What usage is counted under."""

router = APIRouter(tags=["openai"], route_class=OpenAIRoute)


@router.get("/models")
async def list_models(services: Ready, _owner: Owner) -> dict[str, Any]:
    """The base models. Revisions are found by their path."""
    served = [_model(services, model.name, Target(model)) for model in services.fleet.models() if model.policy is None]
    return {"object": "list", "data": served}


@router.get("/models/{name:path}")
async def retrieve_model(name: str, services: Ready, owner: Owner) -> dict[str, Any]:
    """A base model, or a checkpoint that the caller may sample."""
    return _model(services, name, await _target(services, name, owner))


@router.post("/completions", response_model=None)
async def create_completion(request: CompletionRequest, http: Request, services: Ready, owner: Owner) -> Response:
    """Continuations of prompts."""
    services.check_accepting()
    target = await _target_here(services, request.model, owner)
    tokenizer = await _tokenizer(target)
    prompts = await asyncio.to_thread(completion_prompts, request, target.model, tokenizer)
    commands = await asyncio.to_thread(completion_samples, request, target, prompts)
    choices = [
        [
            _completion_choice(request, prompt, command, place * request.n + index, tokenizer)
            for index in range(request.n)
        ]
        for place, (prompt, command) in enumerate(zip(prompts, commands, strict=True))
    ]
    events = _events(services, target, commands, owner, prompts_only=request.max_tokens == 0)
    return await _respond(http, request, CompletionAnswer(request.model, commands, choices), events)


@router.post("/chat/completions", response_model=None)
async def create_chat_completion(request: ChatRequest, http: Request, services: Ready, owner: Owner) -> Response:
    """The next turn of a chat."""
    services.check_accepting()
    target = await _target_here(services, request.model, owner)
    tokenizer = await _tokenizer(target)
    command, tool_format = await asyncio.to_thread(chat_sample, request, target, tokenizer)
    style = ChatStyle(tokenizer, tool_format, request.logprobs, None if request.parallel_tool_calls else 1)
    choices = [ChatChoice(index, _text_stream(tokenizer, command), style) for index in range(request.n)]
    events = _events(services, target, [command], owner)
    return await _respond(http, request, ChatAnswer(request.model, [command], [choices]), events)


async def _target(services: Services, name: str, owner: str) -> Target:
    return await services.database.transaction(lambda c: find_target(c, services.catalog, name, owner))


async def _target_here(services: Services, name: str, owner: str) -> Target:
    """As `_target`, with the files that a sample reads."""
    target = await _target(services, name, owner)
    if target.revision is not None:
        await services.fetch(target.revision.key)
    return target


async def _tokenizer(target: Target) -> Tokenizer:
    return await asyncio.to_thread(load_tokenizer, target.model.tokenizer, target.model.vocab_size)


def _model(services: Services, name: str, target: Target) -> dict[str, Any]:
    """A model as OpenAI lists it, with vLLM's additions."""
    return {
        "id": name,
        "object": "model",
        "created": int(target.created_at or services.created_at),
        "owned_by": "mint",
        "root": target.model.name,
        "max_model_len": target.model.max_sample_length,
    }


def _completion_choice(
    request: CompletionRequest, prompt: Prompt, command: Sample, index: int, tokenizer: Tokenizer
) -> CompletionChoice:
    text = _text_stream(tokenizer, command, len(prompt.text) if request.echo else 0)
    with_logprobs = request.logprobs is not None
    return CompletionChoice(index, text, tokenizer, prompt, echo=request.echo, logprobs=with_logprobs)


def _text_stream(tokenizer: Tokenizer, command: Sample, offset: int = 0) -> TextStream:
    return TextStream(tokenizer, command.params.stop_bytes, command.params.stop_token_ids, offset)


def _events(
    services: Services, target: Target, commands: Sequence[Sample], owner: str, *, prompts_only: bool = False
) -> AsyncGenerator[Event, None]:
    """What comes of the commands, counted as its owner's usage once it is there."""
    base_model = target.model.name
    events = draw(services.samples, base_model, commands, owner)
    used = partial(count_sample, services, STREAM, owner, base_model)
    return counted(prompts_alone(events) if prompts_only else events, commands, used)


async def _respond(
    http: Request, request: GenerationRequest, answer: Answer, events: AsyncGenerator[Event, None]
) -> Response:
    """Whole or streamed, for as long as the client is there."""
    if not request.stream:
        return Response(await while_connected(http.receive, answer.whole(events)), media_type="application/json")
    with_usage = request.stream_options is not None and request.stream_options.include_usage
    chunks = answer.chunks(events, with_usage=with_usage)
    # what fails before there is anything to stream is answered with a status of its own
    first = await while_connected(http.receive, anext(chunks))
    return EventStream(first, chunks)
