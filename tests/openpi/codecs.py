"""Codecs and tokens that several tests use."""

from __future__ import annotations

import functools

import numpy as np
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers

from mint.openpi.fast import FastCodec
from mint.openpi.prompts import PolicyTokens

HORIZON, ACTION_DIM = 10, 7


def smooth_chunks(count: int, seed: int = 0) -> np.ndarray:
    """Chunks (count, 10, 7) like those of robots: few frequencies, most of them low."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, HORIZON)[None, :, None]
    slope, bend, level = (rng.uniform(-0.4, 0.4, (count, 1, ACTION_DIM)) for _ in range(3))
    return level + slope * time + bend * np.sin(3 * time)


@functools.cache
def fitted() -> FastCodec:
    return FastCodec.fit(smooth_chunks(200), vocab_size=256)


@functools.cache
def byte_level() -> FastCodec:
    """A codec as the hub's is: byte-level BPE, so that any character has tokens."""
    bare = ByteLevelBPETokenizer()
    texts = ["".join(map(chr, np.random.default_rng(i).integers(280, 420, 70))) for i in range(50)]
    bare.train_from_iterator(texts, vocab_size=600, show_progress=False)
    return FastCodec(bare._tokenizer, min_token=-354)


def text_tokenizer() -> Tokenizer:
    """As PaliGemma's where it matters: `<bos>`, `<eos>`, and no piece of text that is left out."""
    letters = {
        token: place for place, token in enumerate(["<pad>", "<eos>", "<bos>", "Ġ", "Ċ", *map(chr, range(33, 127))])
    }
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def policy_tokens() -> PolicyTokens:
    return PolicyTokens(text_tokenizer(), fitted(), vocab_size=512)
