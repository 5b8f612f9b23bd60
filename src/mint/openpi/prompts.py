"""Prefix and target of a pi0-FAST policy: instruction, state and actions as tokens of PaliGemma's vocabulary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mint.openpi.fast import DecodedActions, FastCodec, read_tokenizer

STATE_BINS = 256
RESERVED_IDS = 128
"""The last ids of PaliGemma's vocabulary, which are its own; actions lie in front of them, counted downwards."""

BEGIN, END = "Action: ", "|"
FAST_FOLDER = "fast"
"""Where a model's folder has its FAST codec."""


def prefix_text(instruction: str, state: npt.ArrayLike) -> str:
    """What the policy is told: the instruction and the normalised state (S,), each value as the number of its bin.

    A value below −1 is in bin −1, as it was when pi0-FAST was trained; one of 1 or more is in the last, 255.

    Raises:
        ValueError: the state is no finite vector.
    """
    values = np.asarray(state, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"state must be a finite vector, is {values.shape}")
    bins = np.digitize(values, np.linspace(-1, 1, STATE_BINS + 1)[:-1]) - 1
    cleaned = instruction.lower().strip().replace("_", " ")
    return f"Task: {cleaned}, State: {' '.join(map(str, bins))};\n"


@dataclass(frozen=True)
class Target:
    """T `tokens` that the policy is to say; for each, whether it attends causally, and its weight in the loss."""

    tokens: list[int]
    token_ar_mask: list[int]
    weights: list[float]


@dataclass(frozen=True, eq=False)
class PolicyTokens:
    """The tokens of a policy.

    Attributes:
        tokenizer: PaliGemma's, or the model's own, with the tokens `<bos>` and `<eos>`.
        codec: of action chunks.
        vocab_size: ids of the model's text vocabulary, 257152 in PaliGemma. Action token t is the id
            `vocab_size − 1 − 128 − t`.

    Raises:
        ValueError: the tokenizer lacks one of these tokens, or the vocabulary has no place for the codec's.
    """

    tokenizer: Tokenizer
    codec: FastCodec
    vocab_size: int

    def __post_init__(self) -> None:
        for token in ("<bos>", "<eos>"):
            self._id(token)
        actions = self.codec.vocab_size
        if self.vocab_size - RESERVED_IDS < actions:
            raise ValueError(f"a vocabulary of {self.vocab_size} has no place for {actions} action tokens")

    @classmethod
    def load(cls, folder: str | Path) -> PolicyTokens:
        """Those of a model's folder: `tokenizer.json`, `config.json` and the codec in `fast/`.

        Raises:
            OSError, ValueError: a file is missing or damaged.
        """
        config = json.loads((Path(folder) / "config.json").read_text())
        try:
            vocab_size = int(config["text_config"]["vocab_size"])
        except (KeyError, TypeError):
            raise ValueError(f"{folder}/config.json has no text_config.vocab_size") from None
        return cls(read_tokenizer(folder), FastCodec.load(Path(folder) / FAST_FOLDER), vocab_size)

    @property
    def eos_id(self) -> int:
        """The token that ends a target."""
        return self._id("<eos>")

    def prefix(self, instruction: str, state: npt.ArrayLike) -> list[int]:
        """`<bos>` and the prefix's text; see `prefix_text`."""
        return [self._id("<bos>"), *self._ids(prefix_text(instruction, state))]

    def target(self, actions: npt.ArrayLike) -> Target:
        """`Action: `, the chunk's tokens, `|`, `<eos>`: all causal, all in the loss. Actions (H, D) are normalised.

        Raises:
            ValueError: they are no finite (H, D).
        """
        coded = [self._swap(token) for token in self.codec.encode(actions)]
        tokens = [*self._ids(BEGIN), *coded, *self._ids(END), self.eos_id]
        return Target(tokens, [1] * len(tokens), [1.0] * len(tokens))

    def actions(self, tokens: Sequence[int], horizon: int, action_dim: int) -> DecodedActions:
        """The normalised chunk that a policy's tokens say, whatever they are; without `Action: ` in front, zeros."""
        begin, end = self._ids(BEGIN), self._ids(END)[0]
        said = [int(token) for token in tokens]
        whole = end in said
        body = said[: said.index(end)] if whole else said
        if body[: len(begin)] != begin:
            return DecodedActions(np.zeros((horizon, action_dim), np.float32), ok=False)
        decoded = self.codec.decode([self._swap(token) for token in body[len(begin) :]], horizon, action_dim)
        return DecodedActions(decoded.actions, decoded.ok and whole)

    def _swap(self, token: int) -> int:
        """From the codec's token to the vocabulary's id, and the same way back."""
        return self.vocab_size - 1 - RESERVED_IDS - token

    def _id(self, token: str) -> int:
        place = self.tokenizer.token_to_id(token)
        if place is None:
            raise ValueError(f"the tokenizer has no {token}")
        return place

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
