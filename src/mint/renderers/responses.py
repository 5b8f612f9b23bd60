"""What a model said, taken apart: reasoning, text, tool calls; whole or as far as it has come.

A response is `[reasoning] text [calls]`, as chat templates write it. Line breaks that templates put around reasoning
and before calls belong to the template and not to the message. Whatever `so_far` shows of a part of a response is the
beginning of what `read` finds in all of it: streams rely on that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tinker_cookbook.renderers import ToolCall, UnparsedToolCall, format_content_as_string, parse_content_blocks

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"
"""The format of Hermes and Qwen. Others have no marks that tell a call from a text that looks like one."""


@dataclass(frozen=True)
class Response:
    """The parts of a response."""

    thinking: str = ""
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    unparsed: list[UnparsedToolCall] = field(default_factory=list)


@dataclass(frozen=True)
class ResponseFormat:
    """How a model writes what it says.

    Args:
        thinking: the marks before and behind reasoning, or None where it does none.
        calls: whether it calls tools, in Hermes's format.
        lead: what it writes before everything, such as a space, that is not the message's.
    """

    thinking: tuple[str, str] | None
    calls: bool
    lead: str = ""

    def read(self, text: str) -> Response:
        """The parts of a response that is over, well-formed or not."""
        thinking, rest = self._split(text.removeprefix(self.lead))
        begins = rest.find(CALL) if self.calls else -1
        if begins < 0:
            return Response(thinking, rest)
        said = rest[:begins].removesuffix("\n")
        complete, unclosed = _cut_unclosed(rest[begins:])
        parts, found = parse_content_blocks(complete) or ([], [])
        between = format_content_as_string(parts, separator="")
        return Response(
            thinking,
            said + between if between.strip() else said,
            [call for call in found if isinstance(call, ToolCall)],
            [call for call in found if isinstance(call, UnparsedToolCall)] + unclosed,
        )

    def so_far(self, text: str) -> Response:
        """Reasoning and text of a response that goes on, without what the rest may show to be something else."""
        if self.lead.startswith(text):
            return Response()
        text = text.removeprefix(self.lead)
        if self.thinking and self.thinking[0].startswith(text.lstrip("\n")[: len(self.thinking[0])]):
            if len(text.lstrip("\n")) < len(self.thinking[0]):
                return Response()
            if self.thinking[1] not in text:
                return Response(_without_beginning_of(self.thinking[1], self._split(text)[0]).rstrip("\n"))
        thinking, rest = self._split(text)
        if self.calls:
            rest = _without_beginning_of(CALL, rest.partition(CALL)[0]).removesuffix("\n")
        return Response(thinking, rest)

    def _split(self, text: str) -> tuple[str, str]:
        """Reasoning, and what follows it."""
        if self.thinking is None:
            return "", text
        before, opened, rest = text.partition(self.thinking[0])
        if not opened or before.strip("\n"):
            return "", text
        thinking, _, rest = rest.partition(self.thinking[1])
        return thinking.strip("\n"), rest.lstrip("\n")


def _cut_unclosed(text: str) -> tuple[str, list[UnparsedToolCall]]:
    """A text up to a call in it that is not closed, and that call."""
    begins = text.rfind(CALL)
    if END_OF_CALL in text[begins:]:
        return text, []
    return text[:begins], [UnparsedToolCall(raw_text=text[begins:], error=f"{CALL} without {END_OF_CALL}")]


def _without_beginning_of(mark: str, text: str) -> str:
    """A text without what may become a mark at its end."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return text[:-length]
    return text
