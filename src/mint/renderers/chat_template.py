"""A tokenizer's chat template as a function from conversations to tokens, and what can be learned of it by trying.

Messages are dicts as `apply_chat_template` takes them. Templates are programs, so nothing is read off their source
that can be seen from what they write: a message is replaced by a mark, and the text around the mark tells where the
message stands. Knows neither the cookbook nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2

Message = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Where templates look for an assistant's reasoning."""

THINKING_MARKERS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""What models write before and behind their reasoning."""

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
"""A tool to try templates with."""


class ChatTemplateError(ValueError):
    """The chat template is missing, refuses a conversation, or does something with it that cannot be followed."""


class ChatTemplate:
    """The chat template of a tokenizer of transformers.

    Args:
        tokenizer: a fast one; its `chat_template` is used.
        variables: for the template, beside messages and tools, such as `{"enable_thinking": False}`.

    Raises:
        ChatTemplateError: the tokenizer has no chat template, or is not a fast one.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ChatTemplateError(f"the tokenizer {_name(tokenizer)} has no chat_template")
        if not tokenizer.is_fast:
            raise ChatTemplateError(
                f"the tokenizer {_name(tokenizer)} is not a fast one, which tells where tokens begin"
            )
        self.tokenizer = tokenizer
        self.variables = dict(variables or {})

    # ---------------------------------------------------------------- conversations to text and tokens

    def text(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generation: bool = False
    ) -> str:
        """What the template writes.

        Args:
            tools: in OpenAI's format.
            generation: go on to where the assistant's next message begins.

        Raises:
            ChatTemplateError: the template refuses the conversation.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    add_generation_prompt=generation,
                    tokenize=False,
                    **self.variables,
                )
            )
        # what templates say is `raise_exception`, and what they stumble over a message that lacks something
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ChatTemplateError(f"the chat template does not take the messages: {error}") from error

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a conversation, to where the assistant's next message begins.

        Raises:
            ChatTemplateError: the template refuses the conversation.
        """
        return self.encode(self.text(messages, tools, generation=True))

    def encode(self, text: str) -> list[int]:
        """Tokens of what a template wrote, or of a part of it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones spelled out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def around(
        self, messages: Sequence[Message], index: int, tools: Sequence[Mapping[str, Any]], *, generation: bool = False
    ) -> tuple[str, str] | None:
        """The text before and after what message `index` says; None where the template does not write it just once."""
        mark = unused_mark(messages)
        return self._split(messages, index, {"content": mark}, mark, tools, generation=generation)

    def before_reasoning(
        self, messages: Sequence[Message], index: int, tools: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """The text before the reasoning of message `index`; None where the template does not write it just once."""
        if self.reasoning_field is None:
            return None
        mark = unused_mark(messages)
        fields = {"content": messages[index].get("content", ""), self.reasoning_field: mark}
        found = self._split(messages, index, fields, mark, tools, generation=False)
        return found[0] if found else None

    def _split(
        self,
        messages: Sequence[Message],
        index: int,
        fields: Message,
        mark: str,
        tools: Sequence[Mapping[str, Any]],
        *,
        generation: bool,
    ) -> tuple[str, str] | None:
        kept = {key: messages[index][key] for key in ("role", "name", "tool_call_id") if key in messages[index]}
        marked = [*messages[:index], kept | fields, *messages[index + 1 :]]
        try:
            parts = self.text(marked, tools, generation=generation).split(mark)
        except ChatTemplateError:
            return None
        return (parts[0], parts[1]) if len(parts) == 2 else None

    # ---------------------------------------------------------------- what the template is like

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an assistant's message: what the template writes behind one, else the tokenizer's EOS.

        Raises:
            ChatTemplateError: there is neither.
        """
        around = self.around([*self._question, {"role": "assistant", "content": ""}], 1, ())
        for token in self.encode(around[1]) if around else ():
            if token in self.special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise ChatTemplateError("neither the chat template nor the tokenizer has a token that ends a message")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens that are no text."""
        return frozenset(token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special)

    @cached_property
    def opening(self) -> str:
        """What a generation prompt writes of the assistant's message itself: an opened or closed block of thinking."""
        around = self.around(self._question, 0, (), generation=True)
        written = around[1] if around else ""
        start = max(written.rfind(before) for before, _ in THINKING_MARKERS)
        return written[start:] if start >= 0 else ""

    @cached_property
    def lead(self) -> str:
        """What the template writes between a prompt and the text of an answer without reasoning, such as a space."""
        around = self.around([*self._question, {"role": "assistant", "content": ""}], 1, ())
        prompt = self.text(self._question, generation=True)
        if around is None or not around[0].startswith(prompt) or self.thinking_markers:
            return ""
        return around[0][len(prompt) :]

    @cached_property
    def thinking_markers(self) -> tuple[str, str] | None:
        """What stands before and behind reasoning; None where the template knows none."""
        source = self.source
        return next((pair for pair in THINKING_MARKERS if pair[1] in source), None)

    @cached_property
    def reasoning_field(self) -> str | None:
        """The message field that the template takes reasoning from; None where it belongs into the content."""
        for field in REASONING_FIELDS:
            mark = unused_mark(())
            with_reasoning = [*self._question, {"role": "assistant", "content": "A.", field: mark}]
            if mark in self.text(with_reasoning):
                return field
        return None

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template tells the model of tools."""
        try:
            return "look_up" in self.text(self._question, [TOOL])
        except ChatTemplateError:
            return False

    @cached_property
    def arguments_are_text(self) -> bool:
        """Whether the template wants the arguments of a call as JSON text; most want them as a dict."""
        conversation = [*self._question, called({"word": "tin"})]
        try:
            text = self.text(conversation, [TOOL] if self.takes_tools else ())
        except ChatTemplateError:  # a dict cannot be put behind a text
            return True
        return "'word': 'tin'" in text  # written as Python does, not as JSON

    @cached_property
    def source(self) -> str:
        """The Jinja source: of the template for tools, where there are several."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            return str(template.get("tool_use", template.get("default", "")))
        return str(template)

    @property
    def _question(self) -> list[Message]:
        return [{"role": "user", "content": "Q?"}]


def called(arguments: object) -> Message:
    """An assistant's message that calls `TOOL`."""
    call = {"type": "function", "id": "call00001", "function": {"name": "look_up", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def unused_mark(messages: Sequence[Mapping[str, Any]]) -> str:
    """A word that occurs in none of the messages, and that tokenizers keep apart from signs around it."""
    said, mark = repr(messages), "markedplace"
    while mark in said:
        mark += "x"
    return mark


def _name(tokenizer: Any) -> str:
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
