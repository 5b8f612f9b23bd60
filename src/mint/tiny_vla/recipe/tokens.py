"""The tokenizer, the FAST codec and the statistics of the reaching task. Must not know the model."""

from __future__ import annotations

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mint.openpi.fast import FastCodec
from mint.openpi.prompts import RESERVED_IDS, PolicyTokens, prefix_text
from mint.openpi.statistics import Statistics
from mint.tiny_vla.reaching import MAX_STEP, expert, instruction, visited

TEXT_IDS, ACTION_IDS = 160, 64
VOCABULARY = TEXT_IDS + ACTION_IDS + RESERVED_IDS
SAMPLE = 20_000


def train_tokenizer() -> Tokenizer:
    """Words of the prompts as one token each, every digit one of its own, and all of ASCII."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]| ?\p{L}+|[^\p{L}0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_IDS,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    texts = [prefix_text(instruction(mirrored), [0, 0]) + "Action: |" for mirrored in (False, True)]
    bare.train_from_iterator(texts * 2, trainer)
    return bare


def statistics() -> dict[str, Statistics]:
    """Of states and actions on the way."""
    positions, targets = visited(np.random.default_rng(0), SAMPLE)
    return {"state": Statistics.of(positions), "actions": Statistics.of(expert(positions, targets))}


def policy_tokens() -> PolicyTokens:
    """Tokenizer and codec, fitted on what experts do at all angles and speeds, and on their mirror images."""
    positions, targets = visited(np.random.default_rng(1), SAMPLE)
    actions = statistics()["actions"]
    chunks = actions.normalize(expert(positions, targets))
    corners = actions.normalize(np.full((1, *chunks.shape[1:]), MAX_STEP))
    codec = FastCodec.fit(np.concatenate([chunks, -chunks, corners, -corners]), ACTION_IDS)
    return PolicyTokens(train_tokenizer(), codec, VOCABULARY)
