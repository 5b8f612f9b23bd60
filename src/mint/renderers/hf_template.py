"""`hf_template`: a renderer for any chat template of transformers, with the interface of the cookbook's renderers.

Prompts are what `apply_chat_template` makes of the messages. Examples for training are the same text, cut where a
prompt for the trained message ends. Tools go to the template: the message of the role `tool_declare` that
`create_conversation_prefix_with_tools` makes carries them, as with the cookbook's renderers that have such a role.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import tinker
import torch
from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers import (
    Message,
    MessageDelta,
    ParseTermination,
    RenderContext,
    Renderer,
    Role,
    StreamingMessageHeader,
    ToolSpec,
    TrainOnWhat,
    Utf8TokenDecoder,
)
from tinker_cookbook.renderers.base import RenderedMessage
from tinker_cookbook.tokenizer_utils import get_tokenizer

from mint.renderers.chat_template import THINKING_MARKERS, ChatTemplate
from mint.renderers.cookbook import load
from mint.renderers.examples import build_example
from mint.renderers.extension import extends
from mint.renderers.messages import (
    TOOL_DECLARE,
    declaration,
    declared_response,
    declared_tools,
    deltas,
    message_of,
    reasons,
    to_template,
    trained_messages,
)
from mint.renderers.responses import CALL, Response, ResponseFormat


class HFTemplateRenderer(Renderer):
    """Renders with the chat template of its tokenizer.

    Args:
        tokenizer: a fast one of transformers, with a chat template.
        image_processor: must be None; images are not rendered.
        variables: for the template, beside messages and tools, such as `{"enable_thinking": False}`.

    Raises:
        ChatTemplateError: the tokenizer has no chat template, or is not a fast one.
        RendererError: there is an image processor.
    """

    supports_streaming = True

    def __init__(self, tokenizer: Any, image_processor: Any = None, variables: Mapping[str, Any] | None = None) -> None:
        super().__init__(tokenizer)
        if image_processor is not None:
            raise RendererError("hf_template renders no images: leave image_processor out")
        self.template = ChatTemplate(tokenizer, variables)
        self.disables_thinking = any(behind in self.template.opening for _, behind in THINKING_MARKERS)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name where the tokenizer has one to load it by, as the cookbook's renderers; else with the tokenizer."""
        name = self._model_name or self.tokenizer.name_or_path
        tokenizer = None if name else self.tokenizer
        template = self.tokenizer.chat_template
        return _revive, (name, tokenizer, template, self.template.variables, self._renderer_name)

    # ---------------------------------------------------------------- to tokens

    def build_generation_prompt(
        self, messages: list[Message], role: Role = "assistant", prefill: str | None = None
    ) -> tinker.ModelInput:
        """The prompt for the next message: `apply_chat_template(messages, add_generation_prompt=True)`.

        Args:
            role: of the next message; of another role than the assistant, what the template puts before one.
            prefill: text that the next message begins with.

        Raises:
            ChatTemplateError: the template refuses the messages.
            RendererError: a message has content that is no text.
        """
        plain, tools = self._plain(messages)
        if role == "assistant":
            tokens = self.template.prompt(plain, tools)
        else:
            tokens = self.template.encode(self._before(role, plain, tools))
        return _model_input(tokens + (self.template.encode(prefill) if prefill else []))

    def build_supervised_example(
        self, messages: list[Message], train_on_what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE
    ) -> tuple[tinker.ModelInput, torch.Tensor]:
        """Tokens of the conversation to the end of its last message, and weights float32 of the same length.

        A message that is trained has weight 1 from where the prompt for it ends to the token that ends its turn, and
        everything else has 0. With ALL_TOKENS all have 1 but a leading BOS.

        Raises:
            ChatTemplateError: the template refuses the messages, or rewrites a trained one beyond recognition.
            RendererError: `trainable` is missing with CUSTOMIZED or present without; content that is no text; or a
                trained message reasons after a prompt that says not to.
        """
        trained = trained_messages(messages, train_on_what)
        plain, tools = self._plain(messages)
        places = _places_without_tools(messages)
        wanted = [places[index] for index in trained if index in places]
        example = build_example(self.template, plain, tools, wanted)
        if self.disables_thinking:
            self._refuse_reasoning(plain, wanted)
        weights = torch.zeros(len(example.tokens))
        for span in example.spans.values():
            weights[span.start : span.stop] = 1
        if train_on_what == TrainOnWhat.ALL_TOKENS:
            weights[:] = 1
            weights[:1] = float(example.tokens[:1] != [self.tokenizer.bos_token_id])
        return _model_input(example.tokens), weights

    def create_conversation_prefix_with_tools(self, tools: list[ToolSpec], system_prompt: str = "") -> list[Message]:
        """Messages to begin a conversation with in which these tools are there.

        Raises:
            NotImplementedError: the template tells the model of no tools.
        """
        if tools and not self.template.takes_tools:
            raise NotImplementedError("the chat template has no place for tools")
        prefix = [declaration(tools)] if tools else []
        return prefix + ([Message(role="system", content=system_prompt)] if system_prompt else [])

    def to_openai_message(self, message: Message) -> dict[str, Any]:
        """A message as this template takes it: reasoning in the field that it reads, arguments as it wants them."""
        return to_template(message, self.template)

    def render_message(self, message: Message, ctx: RenderContext) -> RenderedMessage:
        """Not to be had: a chat template renders conversations, not messages.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a chat template renders whole conversations: use build_supervised_example")

    @cached_property
    def has_extension_property(self) -> bool:
        """Whether every prompt of a conversation begins with the last one and its answer, found out by trying."""
        return extends(self.template)

    # ---------------------------------------------------------------- from tokens

    def get_stop_sequences(self) -> list[int]:
        """The token that ends a turn.

        Raises:
            ChatTemplateError: neither template nor tokenizer has one.
        """
        return [self.template.end_of_turn]

    def parse_response(self, response: list[int]) -> tuple[Message, ParseTermination]:
        """A message from sampled tokens, with a ThinkingPart and `tool_calls` where the template has such.

        A tokenizer's `response_template` says how; without one, reasoning in `<think>` or `[THINK]` and calls in
        Hermes's format are read where the template names them. What does not end with its first end of turn is
        MALFORMED; the message then holds what there is.
        """
        said, termination = self._cut(response)
        return message_of(self._read(said)), termination

    def parse_response_streaming(self, response: list[int]) -> Iterator[MessageDelta]:
        """The same by and by: deltas that add up to the message, then the message.

        Text that a `response_template` of the tokenizer describes comes in one piece at the end.
        """
        said, _ = self._cut(response)
        shown = {"thinking": "", "text": ""}
        yield StreamingMessageHeader(role="assistant")
        if self._declared is None:
            decoder, text = Utf8TokenDecoder(self.tokenizer), self._opened
            for token in said:
                text += decoder.decode([token]) or ""
                yield from deltas(self._format.so_far(text), shown)
        whole = self._read(said)
        yield from deltas(whole, shown)
        yield message_of(whole)

    def _cut(self, response: Sequence[int]) -> tuple[list[int], ParseTermination]:
        """The tokens of the message proper, and how it ended."""
        end = self.template.end_of_turn
        if end in response:
            place = response.index(end)
            whole = place == len(response) - 1
            return list(response[:place]), ParseTermination.STOP_SEQUENCE if whole else ParseTermination.MALFORMED
        if response and response[-1] == self.tokenizer.eos_token_id:
            return list(response[:-1]), ParseTermination.EOS
        return list(response), ParseTermination.MALFORMED

    def _read(self, said: list[int]) -> Response:
        text = self.template.decode(said)
        if self._declared is not None:
            return declared_response(self.tokenizer, text, self.template.opening)
        return self._format.read(self._opened + text)

    @cached_property
    def _format(self) -> ResponseFormat:
        calls = CALL in self.template.source and self.template.takes_tools
        return ResponseFormat(self.template.thinking_markers, calls, self.template.lead)

    @property
    def _declared(self) -> dict[str, Any] | None:
        return getattr(self.tokenizer, "response_template", None)

    @cached_property
    def _opened(self) -> str:
        """The mark of reasoning that the prompt has written already."""
        return "" if self.disables_thinking else self.template.opening

    # ---------------------------------------------------------------- helpers

    def _plain(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Messages and tools for the template."""
        tools = [tool for message in messages for tool in declared_tools(message)]
        return [self.to_openai_message(m) for m in messages if m["role"] != TOOL_DECLARE], tools

    def _before(self, role: Role, plain: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        around = self.template.around([*plain, {"role": role, "content": ""}], len(plain), tools)
        if around is None:
            raise RendererError(f"role: the chat template has no messages of {role!r} here")
        return around[0]

    def _refuse_reasoning(self, plain: list[dict[str, Any]], wanted: list[int]) -> None:
        last = len(plain) - 1
        if last in wanted and reasons(plain[last], self.template):
            raise RendererError(
                "the last message reasons, and this renderer's prompts say not to: train it with hf_template,"
                " or leave the reasoning out"
            )


def _places_without_tools(messages: Sequence[Message]) -> dict[int, int]:
    """Index of each message among those that the template is given as messages."""
    kept = [index for index, message in enumerate(messages) if message["role"] != TOOL_DECLARE]
    return {index: place for place, index in enumerate(kept)}


def _model_input(tokens: list[int]) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(tokens) if tokens else tinker.ModelInput.empty()


def _revive(
    name: str, tokenizer: Any, chat_template: Any, variables: dict[str, Any], renderer_name: str | None
) -> HFTemplateRenderer:
    """Unpickle a renderer: by the tokenizer's name, or with the tokenizer itself."""
    load()  # registers the tokenizers that MinT knows by name
    tokenizer = tokenizer or get_tokenizer(name)
    if tokenizer.chat_template != chat_template:
        tokenizer = copy.deepcopy(tokenizer)  # the cookbook's is shared
        tokenizer.chat_template = chat_template
    renderer = HFTemplateRenderer(tokenizer, variables=variables)
    renderer._renderer_name, renderer._model_name = renderer_name, name
    return renderer
