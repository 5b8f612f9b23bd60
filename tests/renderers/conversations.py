"""Conversations to render, and helpers to look at what came out."""

from __future__ import annotations

from typing import Any

from mint.renderers import Message, ToolCall

SYSTEM: Message = {"role": "system", "content": "Answer briefly."}
QUESTION: Message = {"role": "user", "content": "What is tin?"}
ANSWER: Message = {"role": "assistant", "content": "A metal."}
MORE: Message = {"role": "user", "content": "And 天気 🙂 für naïve?"}
OTHER: Message = {"role": "assistant", "content": "Wörter: 天気 🙂, <b>bold</b> & 3 + 4 = 7."}
REASONED: Message = {
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "It is old, 天気.\nI think."},
        {"type": "text", "text": "A metal 🙂."},
    ],
}
CALLING: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        ToolCall(id="call00001", function=ToolCall.FunctionBody(name="look_up", arguments='{"word": "tin"}'))
    ],
}
RESULT: Message = {"role": "tool", "name": "look_up", "tool_call_id": "call00001", "content": "a metal"}
TOOL = {
    "name": "look_up",
    "description": "Look a word up.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}

PLAIN = {
    "one turn": [QUESTION, ANSWER],
    "with a system message": [SYSTEM, QUESTION, OTHER],
    "two turns": [QUESTION, ANSWER, MORE, OTHER],
    "three turns": [SYSTEM, QUESTION, OTHER, MORE, ANSWER, QUESTION, OTHER],
}
REASONING = {"reasoning": [QUESTION, REASONED], "reasoning later": [QUESTION, ANSWER, MORE, REASONED]}
WITH_TOOLS = {"a call": [QUESTION, CALLING], "after a call": [QUESTION, CALLING, RESULT, OTHER]}


def plain(message: Message) -> dict[str, Any]:
    """A message as something that compares by its values."""
    calls = [(call.function.name, call.function.arguments) for call in message.get("tool_calls", [])]
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    thinking = "".join(part["thinking"] for part in parts if part["type"] == "thinking")
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return {"role": message["role"], "thinking": thinking, "text": text, "calls": calls}


def answer_of(tokens: list[int], weights: Any) -> list[int]:
    """The tokens that have weight."""
    return [token for token, weight in zip(tokens, weights.tolist(), strict=True) if weight]
