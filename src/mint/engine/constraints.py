"""Constrained decoding: which tokens may come next, so that a sample's text matches a grammar.

llguidance reads tokenizer and grammar and computes masks; what is ours is one state for each sequence, the rules of
the end, a cache of compiled grammars, and masks applied to some rows of a batch.

Shapes: B sequences, V vocabulary, W = ⌈V / 32⌉ · 4 bytes of a mask with one bit for each token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from mint.engine.core import Constraint
from mint.engine.grammars import grammar, parser_limits, readable
from mint.errors import BadRequestError

Bits = npt.NDArray[np.uint8]

NOTHING_MATCHES = "nothing that this model can write matches it"

NUM_CACHED = 64
"""Compiled grammars that are kept. One takes some kilobytes at first, and more with each state of its lexer."""


@dataclass(frozen=True)
class Vocabulary:
    """The library's reading of a tokenizer, and masks (W,): tokens that are text, and those or end tokens."""

    tokenizer: LLTokenizer
    text: Bits
    text_or_end: Bits


class ConstraintState:
    """Where one sequence is in its grammar. Made by `ConstraintCompiler.start`.

    It lives on the host and knows nothing of the key/value cache: a preempted sequence keeps it and goes on.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, field: str) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._field = field

    @property
    def may_stop(self) -> bool:
        """Whether the text so far matches as it is. Exactly then the mask has the model's end tokens."""
        return self._matcher.is_accepting()

    @property
    def must_stop(self) -> bool:
        """Whether the sequence is complete: an end token was drawn, or no token but an end token could follow."""
        return self._matcher.is_stopped()

    def allowed_bits(self) -> Bits:
        """Uint8 (W,): bit t % 8 of byte t // 8, counted from the lowest, is 1 where token t may come next.

        Raises:
            BadRequestError: no token may, or it takes too much work to tell.
        """
        bits = np.empty_like(self._vocabulary.text)
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self._refuse_error()
        # text that reads like a special token: the library would have the token written for it
        bits &= self._vocabulary.text_or_end if self.may_stop else self._vocabulary.text
        if not bits.any():
            raise BadRequestError(NOTHING_MATCHES, field=self._field)
        return bits

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed.

        Raises:
            BadRequestError: it takes too much work to follow.
        """
        if not self._matcher.consume_token(token):
            self._refuse_error()

    def copy(self) -> ConstraintState:
        """An independent state at the same place."""
        return ConstraintState(self._matcher.deep_copy(), self._vocabulary, self._field)

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            reason = readable(self._matcher.get_error())
            message = NOTHING_MATCHES if reason.startswith("NoExtension") else f"cannot be enforced: {reason}"
            raise BadRequestError(message, field=self._field)


class ConstraintCompiler:
    """Makes states for one model; its tokenizer is read when the first is asked for.

    Args:
        tokenizer: of transformers, with a `tokenizers` backend.
        vocab_size: V of the logits. Ids that the tokenizer does not use are never allowed.
        end_token_ids: what the model ends a text with.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, end_token_ids: Sequence[int]) -> None:
        self._source = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = list(end_token_ids)
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[Constraint, ConstraintState] = OrderedDict()

    def start(self, constraint: Constraint) -> ConstraintState:
        """The state of an empty text.

        Raises:
            BadRequestError: the constraint is malformed, not supported, too large, or matched by nothing; or this
                model's tokenizer is of a kind that cannot be constrained.
        """
        start = self._compiled.get(constraint)
        if start is None:
            start = self._compiled[constraint] = self._compile(constraint)
            if len(self._compiled) > NUM_CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(constraint)
        return start.copy()

    def _compile(self, constraint: Constraint) -> ConstraintState:
        if self._vocabulary is None:
            self._vocabulary = self._read_tokenizer(constraint.field)
        matcher = LLMatcher(self._vocabulary.tokenizer, grammar(constraint), limits=parser_limits(), log_level=0)
        start = ConstraintState(matcher, self._vocabulary, constraint.field)
        start.allowed_bits()  # which is where faults show
        return start

    def _read_tokenizer(self, field: str) -> Vocabulary:
        backend = getattr(self._source, "backend_tokenizer", None)
        if backend is None or not self._end_token_ids:
            raise BadRequestError(
                "this model's samples cannot be constrained: its tokenizer is not one of `tokenizers`, or has no end",
                field=field,
            )
        try:
            read = LLTokenizer(backend.to_str(), n_vocab=self._vocab_size, eos_token=self._end_token_ids)
        except ValueError as error:
            raise BadRequestError(f"this model's samples cannot be constrained: {error}", field=field) from error
        is_text = np.ones(-(-self._vocab_size // 32) * 32, np.bool_)
        is_text[[token for token in self._source.added_tokens_decoder if read.is_special_token(token)]] = False
        is_text[self._end_token_ids] = False
        is_end = np.isin(np.arange(len(is_text)), self._end_token_ids)
        text, text_or_end = (np.packbits(tokens, bitorder="little") for tokens in (is_text, is_text | is_end))
        return Vocabulary(read, text, text_or_end)


def mask_logits(logits: Tensor, states: Mapping[int, ConstraintState]) -> dict[int, BadRequestError]:
    """Set to −∞, in place, what the states of some rows of float32 (B, V) logits do not allow.

    Returns:
        the rows whose state failed, with the reason. They are left as they were.
    """
    masks: dict[int, Bits] = {}
    failed: dict[int, BadRequestError] = {}
    for row, state in states.items():
        try:
            masks[row] = state.allowed_bits()
        except BadRequestError as error:
            failed[row] = error
    if masks:
        device = logits.device
        bits = torch.from_numpy(np.stack(list(masks.values()))).to(device).int()
        added = _by_byte(device).index_select(0, bits.flatten()).view(len(masks), -1)
        logits.index_add_(0, torch.tensor(list(masks), device=device), added[:, : logits.shape[1]])
    return failed


@cache
def _by_byte(device: torch.device) -> Tensor:
    """Float32 (256, 8): for each byte of a mask what it adds to the logits of its eight tokens, 0 or −∞.

    A look-up and a sum are several times faster than to spread the bits and fill by them.
    """
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy(np.where(bits == 1, 0, -np.inf).astype(np.float32)).to(device)
