"""Requests as OpenAI's clients send them, with the extensions that other servers of open models have made common.

A parameter that is not declared here is refused by its name; one that is OpenAI's and not served is accepted at the
value that changes nothing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from mint.errors import BadRequestError
from mint.server.openai.errors import UnsupportedParameterError
from mint.server.openai.messages import MAX_NESTING, GivenToolChoice, Message, Tool, ToolChoice, shallow
from mint.wire.documents import is_text

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128
"""Of one request, over all of its prompts."""
MAX_TOLD = 1 << 20
"""Tokens that an answer may tell of, those beside each drawn one included; in JSON each takes some 70 bytes."""
MAX_BODY_BYTES = 8 << 20
"""Of a request's body."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _schema_text(value: Any) -> Any:
    """A JSON schema as text, whether it came as text or as an object."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
    except RecursionError:
        raise ValueError(f"a JSON schema may be {MAX_NESTING} levels deep") from None
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object")  # noqa: TRY004 (pydantic reports a ValueError)
    return json.dumps(shallow(schema))


def _prompts(value: Any) -> list[str | list[int]]:
    """OpenAI's four ways to write prompts, as a list of prompts."""
    prompts = [value] if isinstance(value, str) or _is_tokens(value) else value
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("must be a text, a list of tokens, or a list of texts or of such lists")
    if not all(isinstance(prompt, str) or _is_tokens(prompt) for prompt in prompts):
        raise ValueError("has a prompt that is neither a text nor a list of tokens")
    return prompts


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


SchemaText = Annotated[str, BeforeValidator(_schema_text, json_schema_input_type=dict[str, Any] | str)]
StopText = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Base of what has no fields but its own; null is the same as absent."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Parameters that are not served, with the values at which they ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        for name, values in cls.NEUTRAL.items():
            if name in given and given.pop(name) not in values:
                raise UnsupportedParameterError("is not served here", field=name)
        return given


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool = False


class JsonSchema(Strict):
    """A named schema. It is always kept to, `strict` or not."""

    name: str
    schema_text: SchemaText = Field(alias="schema", default='{"type": "object"}')
    description: str | None = None
    strict: bool = True


class ResponseFormat(Strict):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """vLLM's name for constraints."""

    schema_text: SchemaText | None = Field(alias="json", default=None)
    regex: str | None = None


class GenerationRequest(Strict):
    """What completions and chat completions have in common."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "store": (False,),
        "service_tier": ("auto", "default"),
    }

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Annotated[list[StopText], BeforeValidator(_listed), Field(max_length=4)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaText | None = None
    guided_regex: str | None = None
    # labels of the caller's, which change nothing
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: Any) -> Any:
        try:
            text = json.dumps(body, ensure_ascii=False)
        except RecursionError:
            raise ValueError("is nested too deeply to be read") from None
        if not is_text(text):
            raise ValueError("has half a surrogate pair, which is no character")
        return body

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise BadRequestError("needs stream to be true", field="stream_options")
        return self


class CompletionRequest(GenerationRequest):
    """POST completions."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {**GenerationRequest.NEUTRAL, "suffix": ("",)}

    prompt: Annotated[
        list[str | list[int]],
        PlainValidator(_prompts, json_schema_input_type=str | list[int] | list[str] | list[list[int]]),
    ]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = False
    best_of: int | None = None


class ChatRequest(GenerationRequest):
    """POST chat/completions."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.NEUTRAL,
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "reasoning_effort": (),
        "verbosity": (),
        "functions": ([],),
        "function_call": ("none",),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] = []
    tool_choice: GivenToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, str | int | float | bool] = {}
