"""Conversations of many turns whose tokens only grow.

A renderer makes each prompt from messages, so that an answer comes back as its text is tokenized, with its reasoning
dropped where the format drops it: the model would be trained on tokens that it did not say, and a server would compute
the whole conversation again at each turn. Here the next prompt is the last one, the tokens that were sampled, and what
the renderer writes behind them. Works with every renderer of texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import tinker
from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import Message, ParseTermination, Renderer

from mint.renderers.chat_template import unused_mark


class Conversation:
    """One conversation between a sampled model and its environment.

    Args:
        renderer: makes the first prompt, reads answers, and writes what comes between them.
        messages: the beginning, with whose answer sampling starts.

    Attributes:
        messages: all so far, answers as the renderer read them.
        tokens: all so far: prompts and answers.
        weights: 1.0 for each token that was sampled, else 0.0; of the same length.
    """

    def __init__(self, renderer: Renderer, messages: Sequence[Message]) -> None:
        self._renderer = renderer
        self._awaits_answer = True
        self._sampled: list[int] = []
        self.messages: list[Message] = list(messages)
        self.tokens: list[int] = renderer.build_generation_prompt(self.messages).to_ints()
        self.weights: list[float] = [0.0] * len(self.tokens)

    @property
    def prompt(self) -> tinker.ModelInput:
        """What to sample from now.

        Raises:
            RendererError: the last message is an answer, and nothing was added behind it.
        """
        if not self._awaits_answer:
            raise RendererError("the last message is the model's: add what is said to it")
        return tinker.ModelInput.from_ints(self.tokens)

    def add_sampled(self, tokens: Sequence[int]) -> tuple[Message, ParseTermination]:
        """Take an answer to `prompt`, and read it as the renderer does.

        Raises:
            RendererError: there is an answer already.
        """
        if not self._awaits_answer:
            raise RendererError("the last message is the model's: there can be no second answer")
        message, termination = self._renderer.parse_response(list(tokens))
        self._append(tokens, 1.0)
        self.messages.append(message)
        self._awaits_answer = False
        self._sampled = list(tokens)
        return message, termination

    def add(self, *messages: Message) -> None:
        """Add what is said to the last answer: the user's words, results of tools.

        An answer that was cut off is closed first as the renderer closes one.

        Raises:
            RendererError: there is no answer yet, or the renderer writes nothing that can follow one.
        """
        if self._awaits_answer or not messages:
            raise RendererError("messages are added behind an answer: sample from prompt, and call add_sampled")
        self._append(self._behind_answer(list(messages)), 0.0)
        self.messages.extend(messages)
        self._awaits_answer = True

    def _append(self, tokens: Sequence[int], weight: float) -> None:
        self.tokens.extend(tokens)
        self.weights.extend([weight] * len(tokens))

    def _behind_answer(self, messages: list[Message]) -> list[int]:
        """Tokens from behind the answer to where the next one begins: a mark stands for the answer's own."""
        mark = unused_mark([*self.messages, *messages])
        answer = Message(role="assistant", content=mark)
        written = self._renderer.build_generation_prompt([*self.messages[:-1], answer, *messages]).to_ints()
        end = self._end_of(mark, written)
        behind = written[end:]
        stops = self._renderer.get_stop_sequences()
        if stops and isinstance(stops[0], str):
            return self._behind_text(stops[0], self._text(written).rpartition(mark)[2])
        if self._sampled and self._sampled[-1] in stops:
            return behind[self._length_of_end(behind, answer, mark) :]
        return behind

    def _length_of_end(self, behind: list[int], answer: Message, mark: str) -> int:
        """How many tokens behind the answer say no more than that it has ended, which was sampled already."""
        place = behind.index(self._sampled[-1]) if self._sampled[-1] in behind else 0
        if behind[place : place + 1] == self._sampled[-1:] and not self._text(behind[:place]).strip():
            return place + 1
        # some formats end the last message with another token than those before it
        example, _ = self._renderer.build_supervised_example([*self.messages[:-1], answer])
        ending = example.to_ints()
        return int(ending[self._end_of(mark, ending) :][:1] in [[stop] for stop in self._renderer.get_stop_sequences()])

    def _behind_text(self, stop: str, written: str) -> list[int]:
        """The same where answers end with a text, which is also how the next message begins."""
        _, found, beyond = self._text(self._sampled).partition(stop)
        said = found + beyond
        if not written.startswith(said):
            raise RendererError(f"messages: behind an answer that ends with {said!r}, {written[:20]!r} cannot follow")
        return list(self._renderer.tokenizer.encode(written[len(said) :], add_special_tokens=False))

    def _end_of(self, mark: str, tokens: list[int]) -> int:
        """The number of tokens up to the end of the mark."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if mark in self._text(tokens[:middle]) else (middle + 1, high)
        if not self._text(tokens[:low]).endswith(mark):
            raise RendererError("the renderer does not write an answer so that its end can be found")
        return low

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._renderer.tokenizer.decode(list(tokens)))
