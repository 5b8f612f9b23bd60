"""The cookbook's messages as chat templates take them, and responses as the cookbook's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import (
    ContentPart,
    Message,
    MessageDelta,
    StreamingTextDelta,
    StreamingThinkingDelta,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    TrainOnWhat,
    get_text_content,
)

from mint.renderers.chat_template import REASONING_FIELDS, THINKING_MARKERS, ChatTemplate
from mint.renderers.responses import Response

TOOL_DECLARE = "tool_declare"
"""The role of the message that carries tools, as several of the cookbook's renderers have it."""

# ---------------------------------------------------------------- to templates


def to_template(message: Message, template: ChatTemplate) -> dict[str, Any]:
    """A message as `apply_chat_template` takes it.

    Raises:
        RendererError: it has content that is no text.
    """
    content = get_text_content(message) + "".join(call.raw_text for call in message.get("unparsed_tool_calls", []))
    thinking = thinking_of(message)
    result: dict[str, Any] = {"role": message["role"], "content": content}
    if thinking and template.reasoning_field:
        result[template.reasoning_field] = thinking
    elif thinking:
        before, behind = template.thinking_markers or THINKING_MARKERS[0]
        result["content"] = f"{before}\n{thinking}\n{behind}\n\n{content}"
    if message.get("tool_calls"):
        result["tool_calls"] = [_call(call, template) for call in message["tool_calls"]]
    return result | {key: message[key] for key in ("tool_call_id", "name") if key in message}


def _call(call: ToolCall, template: ChatTemplate) -> dict[str, Any]:
    arguments = call.function.arguments
    function = {
        "name": call.function.name,
        "arguments": arguments if template.arguments_are_text else json.loads(arguments),
    }
    return {"type": "function", "id": call.id, "function": function}


def thinking_of(message: Message) -> str:
    """A message's reasoning, all of it.

    Raises:
        RendererError: it has content that is neither text nor reasoning.
    """
    content = message["content"]
    if isinstance(content, str):
        return ""
    for part in content:
        if part["type"] not in ("text", "thinking"):
            raise RendererError(f"hf_template renders text and thinking, not {part['type']!r}")
    return "".join(part["thinking"] for part in content if part["type"] == "thinking")


def reasons(message: dict[str, Any], template: ChatTemplate) -> bool:
    """Whether a message for the template has reasoning, in its field or within the content."""
    marks = template.thinking_markers
    field = template.reasoning_field
    return bool(field and message.get(field)) or bool(marks and marks[1] in message["content"])


def declaration(tools: Sequence[ToolSpec]) -> Message:
    """The message that carries tools."""
    wrapped = [{"type": "function", "function": dict(tool)} for tool in tools]
    return Message(role=TOOL_DECLARE, content=json.dumps(wrapped))


def declared_tools(message: Message) -> list[dict[str, Any]]:
    """The tools that a message carries, in OpenAI's format.

    Raises:
        RendererError: it is of the role and carries something else.
    """
    if message["role"] != TOOL_DECLARE:
        return []
    try:
        tools = json.loads(get_text_content(message))
    except ValueError as error:
        raise RendererError(f"a {TOOL_DECLARE} message holds a JSON list of tools: {error}") from error
    if not isinstance(tools, list):
        raise RendererError(f"a {TOOL_DECLARE} message holds a JSON list of tools, not {type(tools).__name__}")
    return tools


# ---------------------------------------------------------------- what is trained


def trained_messages(messages: Sequence[Message], train_on_what: TrainOnWhat) -> list[int]:
    """Indices of the messages that are trained; none with ALL_TOKENS, which is about tokens.

    Raises:
        RendererError: `trainable` is missing with CUSTOMIZED, or present without.
    """
    customized = train_on_what == TrainOnWhat.CUSTOMIZED
    for index, message in enumerate(messages):
        if ("trainable" in message) != customized:
            wrong = "is missing, and CUSTOMIZED needs it" if customized else "is for CUSTOMIZED alone"
            raise RendererError(f"messages[{index}].trainable {wrong}")
    users = [index for index, message in enumerate(messages[:-1]) if message["role"] == "user"]
    last_user = users[-1] if users else -1
    count = len(messages)
    return [i for i, message in enumerate(messages) if _is_trained(message, i, last_user, count, train_on_what)]


def _is_trained(message: Message, index: int, last_user: int, count: int, train_on_what: TrainOnWhat) -> bool:
    role = message["role"]
    return {
        TrainOnWhat.LAST_ASSISTANT_MESSAGE: role == "assistant" and index == count - 1,
        TrainOnWhat.LAST_ASSISTANT_TURN: role == "assistant" and index > last_user,
        TrainOnWhat.ALL_ASSISTANT_MESSAGES: role == "assistant",
        TrainOnWhat.ALL_MESSAGES: role != TOOL_DECLARE,  # the template writes tools as its own
        TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES: role in ("user", "system"),
        TrainOnWhat.CUSTOMIZED: message.get("trainable", False) and role != TOOL_DECLARE,
        TrainOnWhat.ALL_TOKENS: False,
    }[TrainOnWhat(train_on_what)]


# ---------------------------------------------------------------- from models


def message_of(response: Response) -> Message:
    """An assistant's message; content is a list of parts only where there is reasoning."""
    message = Message(role="assistant", content=response.text)
    if response.thinking:
        parts: list[ContentPart] = [ThinkingPart(type="thinking", thinking=response.thinking)]
        message["content"] = parts + ([TextPart(type="text", text=response.text)] if response.text else [])
    if response.calls:
        message["tool_calls"] = response.calls
    if response.unparsed:
        message["unparsed_tool_calls"] = response.unparsed
    return message


def deltas(response: Response, shown: dict[str, str]) -> Iterator[MessageDelta]:
    """What a response has beyond what was shown, which is brought up to date."""
    if new := response.thinking[len(shown["thinking"]) :]:
        shown["thinking"] += new
        yield StreamingThinkingDelta(thinking=new, content_index=0)
    if new := response.text[len(shown["text"]) :]:
        shown["text"] += new
        yield StreamingTextDelta(text=new, content_index=int(bool(shown["thinking"])))


def declared_response(tokenizer: Any, text: str, opening: str) -> Response:
    """A response read as the tokenizer's `response_template` says; what that cannot read is text."""
    try:
        parsed = tokenizer.parse_response(text, prefix=opening)
    except ValueError:
        return Response(text=text)
    thinking = next((parsed[key] for key in REASONING_FIELDS if parsed.get(key)), "")
    calls = [_declared_call(call.get("function", call)) for call in parsed.get("tool_calls") or []]
    return Response(thinking, parsed.get("content") or "", calls)


def _declared_call(function: dict[str, Any]) -> ToolCall:
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return ToolCall(function=ToolCall.FunctionBody(name=str(function.get("name", "")), arguments=text))
