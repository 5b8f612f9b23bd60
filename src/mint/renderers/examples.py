"""Conversations as training examples: the tokens of all of it, and which of them a message consists of.

A message's tokens are those that whoever speaks would have to produce: from where the prompt for it ends to the token
that ends its turn. Cuts fall between tokens: where the template's text would be tokenized across the end of a prompt,
the text is tokenized in two parts, since that is what a sampler is given.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from mint.renderers.chat_template import ChatTemplate, ChatTemplateError, Message

Tools = Sequence[Mapping[str, Any]]


class Example(NamedTuple):
    """Tokens of a conversation, to the end of its last message, and the messages' places in them."""

    tokens: list[int]
    spans: dict[int, range]


def build_example(template: ChatTemplate, messages: Sequence[Message], tools: Tools, wanted: Sequence[int]) -> Example:
    """The tokens of a conversation, and those of the wanted messages, by their index.

    Raises:
        ChatTemplateError: the template refuses the conversation, or rewrites a wanted message beyond recognition.
    """
    text = template.text(messages, tools)
    starts = {index: _start(template, text, messages, index, tools) for index in wanted}
    # only the assistant's messages are sampled; the others are tokenized with what stands before them, as in prompts
    cuts = sorted(start for index, start in starts.items() if messages[index]["role"] == "assistant")
    tokens, offsets = _encode(template, text, cuts)
    spans = {}
    for index, start in starts.items():
        end = _end(template, text, messages, index, tools)
        if end is None or end < start:
            raise _lost(messages, index)
        spans[index] = range(_first_token(offsets, start), _end_token(template, tokens, offsets, end))
    end = _end(template, text, messages, len(messages) - 1, tools) if messages else None
    if end is not None:
        tokens = tokens[: _end_token(template, tokens, offsets, end)]
    return Example(tokens, spans)


def _start(template: ChatTemplate, text: str, messages: Sequence[Message], index: int, tools: Tools) -> int:
    """The character at which message `index` begins to be said."""
    message = messages[index]
    prompted = _end_of_prompt(template, text, messages, index, tools) if message["role"] == "assistant" else None
    if prompted is not None and template.opening and text[:prompted].endswith(template.opening):
        return prompted
    around = template.around(messages, index, tools)
    before = [around[0]] if around else []
    if template.reasoning_field and message.get(template.reasoning_field):
        before += [reasoning] if (reasoning := template.before_reasoning(messages, index, tools)) else []
    places = [len(written) for written in before if text.startswith(written)]
    # an answer may happen to go on as the prompt does, so it begins no later than where its own text stands
    places += [prompted] if prompted is not None else []
    if not places:
        raise _lost(messages, index)
    return min(places)


def _end_of_prompt(
    template: ChatTemplate, text: str, messages: Sequence[Message], index: int, tools: Tools
) -> int | None:
    """The character to which the prompt for message `index` agrees with the text, from the message before on.

    What comes earlier may differ: templates drop old reasoning from a conversation and not from its prompts.
    """
    if index == 0:
        return None
    previous = _end(template, text, messages, index - 1, tools)
    around = template.around(messages[:index], index - 1, tools, generation=True)
    if previous is None or around is None:
        return None
    agreeing = takewhile(lambda pair: pair[0] == pair[1], zip(text[previous:], around[1], strict=False))
    return previous + sum(1 for _ in agreeing)


def _end(template: ChatTemplate, text: str, messages: Sequence[Message], index: int, tools: Tools) -> int | None:
    """The character behind what message `index` says, before what the template puts behind it."""
    around = template.around(messages, index, tools)
    if around is None or not text.endswith(around[1]):
        return None
    return len(text) - len(around[1])


def _first_token(offsets: list[int], start: int) -> int:
    """The first of the tokens that have character `start` in them."""
    return bisect_left(offsets, offsets[bisect_right(offsets, start) - 1])


def _end_token(template: ChatTemplate, tokens: list[int], offsets: list[int], end: int) -> int:
    """The number of tokens up to character `end` and the end of turn behind it, where one follows."""
    first = bisect_left(offsets, end)
    for place in range(first, len(tokens)):
        if tokens[place] == template.end_of_turn:
            return place + 1
        if tokens[place] in template.special:
            break
    return first


def _encode(template: ChatTemplate, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens with a border at each cut, and the character at which each token begins."""
    encoded = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(encoded["input_ids"])
    offsets = [start for start, _ in encoded["offset_mapping"]]
    for cut in reversed(cuts):
        place = bisect_left(offsets, cut)
        if tokens[:place] != template.encode(text[:cut]):
            left, left_offsets = _encode(template, text[:cut], cuts[: cuts.index(cut)])
            right, right_offsets = _encode(template, text[cut:], [c - cut for c in cuts if c > cut])
            return left + right, left_offsets + [cut + offset for offset in right_offsets]
    return tokens, offsets


def _lost(messages: Sequence[Message], index: int) -> ChatTemplateError:
    return ChatTemplateError(
        f"messages[{index}]: the chat template rewrites this message of the {messages[index]['role']}"
        " so that its tokens cannot be told from the template's"
    )
