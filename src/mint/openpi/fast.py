"""FAST: an action chunk as a few tokens, by a cosine transform along time and byte-pair encoding.

Reads and writes the hub's layout: `tokenizer.json` beside `processor_config.json`. N chunks of H steps of D actions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, trainers

SCALE = 10.0
LAST_CHARACTER = 0xD7FF
"""Behind it come the surrogates, which no tokenizer takes."""

Actions = npt.NDArray[np.float32]


class DecodedActions(NamedTuple):
    """`actions` (H, D) normalised; `ok` says that the tokens were those of a chunk of that shape."""

    actions: Actions
    ok: bool


@dataclass(frozen=True, eq=False)
class FastCodec:
    """Turns chunks into tokens from 0 to `vocab_size` − 1 and back.

    Attributes:
        tokenizer: of texts whose characters are coefficients: `chr(coefficient − min_token)`.
        min_token: the least coefficient; smaller ones are raised to it.
        max_token: the largest one that the tokenizer has a character for; None: any.
        scale: coefficients are rounded after being multiplied by it, so each is off by at most 0.5 / scale.
        horizon, action_dim: H and D of the chunks that this codec is for, where it is for some.
    """

    tokenizer: Tokenizer
    min_token: int
    max_token: int | None = None
    scale: float = SCALE
    horizon: int | None = None
    action_dim: int | None = None

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return int(self.tokenizer.get_vocab_size())

    def encode(self, actions: npt.ArrayLike) -> list[int]:
        """The tokens of one chunk (H, D).

        Raises:
            ValueError: it is no finite (H, D) with at least one action.
        """
        text = "".join(map(chr, self._characters(_coefficients(actions, self.scale))))
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _characters(self, coefficients: npt.NDArray[np.int64]) -> list[int]:
        most = LAST_CHARACTER if self.max_token is None else self.max_token - self.min_token
        characters: list[int] = np.clip(coefficients - self.min_token, 0, most).tolist()
        return characters

    def decode(self, tokens: Sequence[int], horizon: int, action_dim: int) -> DecodedActions:
        """The chunk of these tokens, whatever they are.

        What is no token, or no text, is left out. Missing coefficients, which are those of high frequencies, are 0;
        those that are too many are cut. In all these cases `ok` is False.
        """
        vocab_size = self.vocab_size
        known = [int(token) for token in tokens if 0 <= token < vocab_size]
        text = self.tokenizer.decode(known, skip_special_tokens=False)
        characters = [ord(character) for character in text if ord(character) <= LAST_CHARACTER]
        expected = horizon * action_dim
        coefficients = np.zeros(expected)
        kept = np.array(characters[:expected], np.float64) + self.min_token
        coefficients[: len(kept)] = kept
        actions = idct(coefficients.reshape(horizon, action_dim) / self.scale, axis=0, norm="ortho")
        return DecodedActions(
            actions.astype(np.float32), len(known) == len(tokens) and len(text) == len(characters) == expected
        )

    @classmethod
    def fit(cls, chunks: npt.ArrayLike, vocab_size: int = 1024, scale: float = SCALE) -> FastCodec:
        """A codec of at most `vocab_size` tokens for chunks like these (N, H, D).

        Raises:
            ValueError: these are none, or their coefficients alone need more tokens.
        """
        array = np.asarray(chunks, np.float64)
        if array.ndim != 3:
            raise ValueError(f"chunks must be (N, H, D), is {array.shape}")
        coefficients = [_coefficients(chunk, scale) for chunk in array]
        least, most = (int(pick([pick(row) for row in coefficients])) for pick in (np.min, np.max))
        alphabet = [chr(character) for character in range(most - least + 1)]
        if len(alphabet) > vocab_size:
            raise ValueError(f"vocab_size is {vocab_size}; the coefficients run from {least} to {most}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.decoder = decoders.Fuse()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(("".join(map(chr, row - least)) for row in coefficients), trainer)
        return cls(tokenizer, least, most, scale, array.shape[1], array.shape[2])

    @classmethod
    def load(cls, folder: str | Path) -> FastCodec:
        """The codec of a folder.

        Raises:
            OSError, ValueError: it has none, or a file of it is damaged.
        """
        path = Path(folder) / "processor_config.json"
        config: dict[str, Any] = json.loads(path.read_text())
        if "min_token" not in config:
            raise ValueError(f"{path} has no min_token")
        return cls(
            read_tokenizer(folder),
            int(config["min_token"]),
            config.get("max_token"),
            float(config.get("scale", SCALE)),
            config.get("time_horizon"),
            config.get("action_dim"),
        )

    def save(self, folder: str | Path) -> None:
        """Write the codec to a folder, which is made where there is none."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(Path(folder) / "tokenizer.json"))
        config = {
            "action_dim": self.action_dim,
            "max_token": self.max_token,
            "min_token": self.min_token,
            "scale": self.scale,
            "time_horizon": self.horizon,
            "vocab_size": self.vocab_size,
        }
        (Path(folder) / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder's `tokenizer.json`.

    Raises:
        OSError, ValueError: there is none, or it is damaged.
    """
    content = (Path(folder) / "tokenizer.json").read_bytes()
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{folder}/tokenizer.json is no tokenizer: {error}") from None


def _coefficients(actions: npt.ArrayLike, scale: float) -> npt.NDArray[np.int64]:
    """Rounded coefficients (H · D,): all actions' lowest frequency first."""
    array = np.asarray(actions, np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"actions must be (H, D) with at least one action, is {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("actions must be finite")
    rounded = np.around(dct(array, axis=0, norm="ortho") * scale).ravel()
    # what no codec has a token for; an integer has room for it
    return np.asarray(np.clip(rounded, -(1 << 31), 1 << 31), np.int64)
