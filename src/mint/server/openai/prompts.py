"""What `model` names, and what a request asks the engine for."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Connection

from mint.engine.core import Constraint, Int32Array, ModelInfo, PromptQuery, Revision, Sample, SamplingParams
from mint.engine.grammars import check
from mint.engine.loss_specs import check_token_ids
from mint.errors import BadRequestError, NotFoundError
from mint.server import access
from mint.server.catalog import Catalog
from mint.server.openai.errors import ContextLengthError
from mint.server.openai.requests import MAX_CHOICES, MAX_TOLD, ChatRequest, CompletionRequest, GenerationRequest
from mint.server.openai.tokenizer import Tokenizer
from mint.server.openai.tools import NoTools, ToolFormat, forced_format, offered_format
from mint.wire.paths import SCHEMES, CheckpointPath

INT32_MAX = (1 << 31) - 1


@dataclass(frozen=True)
class Target:
    """A base model, or an adapter revision on it."""

    model: ModelInfo
    revision: Revision | None = None
    created_at: float | None = None


@dataclass(frozen=True)
class Prompt:
    """`tokens` int32 (L,); of a completion also the text, and the character where each token begins."""

    tokens: Int32Array
    text: str = ""
    offsets: list[int] = field(default_factory=list)


def find_target(connection: Connection, catalog: Catalog, name: str, owner: str) -> Target:
    """The base model of that name, or the checkpoint of that path.

    Raises:
        NotFoundError: there is none, or its base model is not served.
        PermissionDeniedError: the checkpoint is someone else's.
    """
    revision, created_at, base_model = None, None, name
    if name.startswith(SCHEMES):
        checkpoint = access.weights(connection, str(CheckpointPath.parse(name, "model")), owner, "model")
        revision = Revision(checkpoint.directory, catalog.checkpoint_dir / checkpoint.directory)
        created_at, base_model = checkpoint.created_at, checkpoint.base_model
    try:
        return Target(catalog.writer(base_model), revision, created_at)
    except BadRequestError as error:
        raise NotFoundError(str(error).partition(": ")[2], field="model") from None


# --- completions --------------------------------------------------------------------------------------------


def completion_prompts(request: CompletionRequest, model: ModelInfo, tokenizer: Tokenizer) -> list[Prompt]:
    """All prompts of a request.

    Raises:
        BadRequestError: there are too many, or one cannot be sampled.
    """
    if len(request.prompt) * request.n > MAX_CHOICES:
        raise BadRequestError(f"prompts times n may be {MAX_CHOICES} at most", field="prompt")
    return [_completion_prompt(prompt, model, tokenizer) for prompt in request.prompt]


def _completion_prompt(prompt: str | list[int], model: ModelInfo, tokenizer: Tokenizer) -> Prompt:
    if isinstance(prompt, str):
        tokens, offsets = tokenizer.encode(prompt)
        return Prompt(tokens, prompt, offsets)
    tokens = np.array([min(max(token, -1), INT32_MAX) for token in prompt], np.int32)  # both ends are refused
    check_token_ids(tokens, model, "prompt")
    return Prompt(tokens, *tokenizer.text_of(prompt))


def completion_samples(request: CompletionRequest, target: Target, prompts: Sequence[Prompt]) -> list[Sample]:
    """One command for each prompt.

    Raises:
        BadRequestError: parameters that do not go together, or a prompt that does not fit.
    """
    if request.best_of not in (None, request.n):
        raise BadRequestError("must be n, which is how many are drawn and returned", field="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise BadRequestError("is 0, which without echo answers nothing", field="max_tokens")
    if request.echo and request.stream and request.logprobs is not None:
        raise BadRequestError("does not go with stream and logprobs together", field="echo")
    top = request.logprobs or 0
    asks_about_prompt = request.echo and request.logprobs is not None
    constraint = _constraint(request)
    samples = []
    for prompt in prompts:
        length = len(prompt.tokens)
        # the engine draws at least one; of an answer that is the prompt alone it is left out
        params = sampling_params(request, target.model, length, max(request.max_tokens, 1), "prompt", constraint)
        query = PromptQuery(last=length - 1, top=top) if asks_about_prompt else PromptQuery()
        samples.append(
            Sample(target.revision, prompt.tokens, request.n, params, query, top_logprobs=top, stream=request.stream)
        )
    told = sum(request.max_tokens + len(prompt.tokens) * asks_about_prompt for prompt in prompts)
    _check_told(request.n * told, top, "logprobs")
    return samples


# --- chat ---------------------------------------------------------------------------------------------------


def chat_sample(request: ChatRequest, target: Target, tokenizer: Tokenizer) -> tuple[Sample, ToolFormat]:
    """The command for a chat, and the way its answer calls tools.

    Raises:
        BadRequestError: the model knows no chats or no tools, parameters do not go together, or it does not fit.
    """
    if tokenizer.chat_template is None:
        raise BadRequestError(f"{target.model.name} has no chat template; completions takes it", field="model")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequestError("needs logprobs to be true", field="top_logprobs")
    tool_format, constraint = _tools(request, tokenizer.chat_template)
    # tools that must not be called are not shown
    tools = [tool.for_template() for tool in request.tools] if request.tool_choice.mode != "none" else []
    messages = [message.for_template() for message in request.messages]
    tokens = tokenizer.encode_chat(messages, tools, request.chat_template_kwargs)
    params = sampling_params(request, target.model, len(tokens), _max_tokens(request), "messages", constraint)
    top = request.top_logprobs or 0
    _check_told(request.n * params.max_tokens, top, "top_logprobs")
    sample = Sample(target.revision, tokens, request.n, params, top_logprobs=top, stream=request.stream)
    return sample, tool_format


def _max_tokens(request: ChatRequest) -> int | None:
    if request.max_completion_tokens is None:
        return request.max_tokens
    if request.max_tokens not in (None, request.max_completion_tokens):
        raise BadRequestError("is another number than max_completion_tokens, its newer name", field="max_tokens")
    return request.max_completion_tokens


def _tools(request: ChatRequest, template: str) -> tuple[ToolFormat, Constraint | None]:
    """How the answer calls tools, and what it must match: the request's constraint, or that of a forced call."""
    choice, constraint = request.tool_choice, _constraint(request)
    if choice.mode == "none" or (choice.mode == "auto" and not request.tools):
        return NoTools(), constraint
    if constraint is not None:
        raise BadRequestError('does not go with a constraint; give tool_choice "none"', field="tools")
    offered = offered_format(request.tools, template)
    if choice.mode != "auto":
        tool_format, forced = forced_format(request.tools, choice, parallel=request.parallel_tool_calls)
        check(forced)
        return tool_format, forced
    for place, tool in enumerate(request.tools):
        if tool.function.strict:
            message = 'is kept with tool_choice "required" or a named function only'
            raise BadRequestError(message, field=f"tools.{place}.function.strict")
    return offered, None


# --- both ---------------------------------------------------------------------------------------------------


def sampling_params(
    request: GenerationRequest,
    model: ModelInfo,
    prompt_length: int,
    max_tokens: int | None,
    prompt_field: str,
    constraint: Constraint | None,
) -> SamplingParams:
    """How to draw; without `max_tokens`, as far as the context goes.

    Raises:
        ContextLengthError: prompt and answer do not fit.
        BadRequestError: there is no prompt.
    """
    room = model.max_sample_length - prompt_length
    if prompt_length == 0:
        raise BadRequestError("has no tokens; a sample needs at least one", field=prompt_field)
    if room < 1 or (max_tokens or 1) > room:
        raise ContextLengthError(
            f"{model.capacity}; the prompt has {prompt_length}"
            + (f" and max_tokens is {max_tokens}" if max_tokens is not None else ""),
            field="max_tokens" if room >= 1 else prompt_field,
        )
    return SamplingParams(
        max_tokens=max_tokens if max_tokens is not None else room,
        seed=request.seed if request.seed is not None else secrets.randbits(63),
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        stop_token_ids=frozenset(model.stop_token_ids),
        stop_bytes=tuple(stop.encode() for stop in request.stop),
        constraint=constraint,
    )


def _check_told(tokens: int, top: int, top_field: str) -> None:
    """Refuse a request whose answer could be too large: `tokens` in all of its choices, each with `top` others."""
    if (told := tokens * (1 + top)) > MAX_TOLD:
        raise BadRequestError(
            f"the answer could tell of {told} tokens, n × max_tokens × (1 + {top_field}); it may be {MAX_TOLD}",
            field="max_tokens",
        )


def _constraint(request: GenerationRequest) -> Constraint | None:
    """The one that a request gives in so many words.

    Raises:
        BadRequestError: there are several, or it cannot be enforced.
    """
    found: dict[str, Constraint] = {}
    answer = request.response_format
    if answer is not None and answer.type == "json_object":
        found["response_format"] = Constraint("json_schema", '{"type": "object"}')
    if answer is not None and answer.type == "json_schema":
        if answer.json_schema is None:
            raise BadRequestError("is missing", field="response_format.json_schema")
        found["response_format"] = Constraint("json_schema", answer.json_schema.schema_text)
    structured = request.structured_outputs
    for name, kind, text in (
        ("structured_outputs.json", "json_schema", structured.schema_text if structured else None),
        ("structured_outputs.regex", "regex", structured.regex if structured else None),
        ("guided_json", "json_schema", request.guided_json),
        ("guided_regex", "regex", request.guided_regex),
    ):
        if text is not None:
            found[name] = Constraint("json_schema" if kind == "json_schema" else "regex", text, name)
    if len(found) > 1:
        raise BadRequestError(f"is a second constraint beside {min(found)}", field=max(found))
    constraint = next(iter(found.values()), None)
    if constraint is not None:
        check(constraint)
    return constraint
