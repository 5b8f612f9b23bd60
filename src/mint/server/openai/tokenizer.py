"""A served model's tokenizer and chat template, in the server process and therefore without torch."""

from __future__ import annotations

import codecs
import inspect
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Any

import jinja2
import numpy as np

from mint.engine.core import Int32Array
from mint.errors import BadRequestError
from mint.models.token_bytes import token_bytes

LOADING = Lock()
"""transformers fails when several threads import it at once."""


class Tokenizer:
    """Text to tokens and back.

    Args:
        backend: of transformers, over a `tokenizer.json`.

    Attributes:
        bytes_of: what each token of the vocabulary stands for.
        special: tokens that are no text, such as the end of a turn.
        chat_template: Jinja, or None where the model has none.
    """

    def __init__(self, backend: Any, vocab_size: int) -> None:
        self._backend = backend
        self.bytes_of: list[bytes] = token_bytes(backend, vocab_size)
        self.special = frozenset(i for i, token in backend.added_tokens_decoder.items() if token.special)
        self.chat_template = _template_of(backend)

    def encode(self, text: str) -> tuple[Int32Array, list[int]]:
        """Tokens int32 (L,) with what the tokenizer puts around a text, and the character where each begins."""
        encoded = self._backend(text, return_offsets_mapping=True)
        return np.array(encoded["input_ids"], np.int32), [start for start, _ in encoded["offset_mapping"]]

    def encode_chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], variables: dict[str, Any]
    ) -> Int32Array:
        """Tokens int32 (L,) of a chat up to where the assistant's turn begins.

        Args:
            variables: for the template, beside messages and tools.

        Raises:
            BadRequestError: the template refuses the messages.
        """
        if taken := inspect.signature(self._backend.apply_chat_template).parameters.keys() & variables.keys():
            raise BadRequestError(f"{min(taken)} is not the request's to set", field="chat_template_kwargs")
        try:
            tokens = self._backend.apply_chat_template(
                messages, tools=tools or None, add_generation_prompt=True, return_dict=False, **variables
            )
        # templates are programs: what they say is `raise_exception`, and what they stumble over a message they lack
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadRequestError(f"the chat template does not take them: {error}", field="messages") from error
        return np.array(tokens, np.int32)

    def spell(self, token: int) -> str:
        """A token by itself: its text, or `bytes:` and escapes where that is a part of a character."""
        spelled = self.bytes_of[token]
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def text_of(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text of a prompt, special tokens spelled out, and the character where each token begins."""
        decoder, parts, offsets, length = utf8_decoder(), [], [], 0
        for token in tokens:
            offsets.append(length)
            parts.append(decoder.decode(self.bytes_of[token]))
            length += len(parts[-1])
        return "".join(parts), offsets


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Gives characters out once they are whole; only bytes that never make one become U+FFFD."""
    return codecs.getincrementaldecoder("utf-8")("replace")


def load_tokenizer(location: str, vocab_size: int) -> Tokenizer:
    """The tokenizer at `location`, a folder or a Hugging Face name. It is read once; reading takes about a second.

    Raises:
        BadRequestError: there is none that can be read here.
    """
    with LOADING:
        return _load(location, vocab_size)


@cache
def _load(location: str, vocab_size: int) -> Tokenizer:
    # late: importing it takes as long as starting the rest of the server
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    try:
        backend = PreTrainedTokenizerFast.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise BadRequestError("its tokenizer has no tokenizer.json, which this API reads", field="model") from error
    return Tokenizer(backend, vocab_size)


def _template_of(backend: Any) -> str | None:
    template: str | dict[str, str] | None = backend.chat_template
    if isinstance(template, dict):  # several by name
        return template.get("tool_use", template.get("default"))
    return template
