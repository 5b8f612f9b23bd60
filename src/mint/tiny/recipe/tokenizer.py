"""The tokenizer: byte-level BPE of exactly 2048 entries, trained on the recipe's own corpus.

All 256 bytes are in the alphabet, so any text round-trips; every digit is a token of its own, so that
arithmetic is a matter of places and not of memorised numbers.  Must not know the model.
"""

from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mint.tiny.recipe.corpus import CHAT_TEMPLATE, END, END_OF_TEXT, START, documents, story
from mint.tiny.recipe.skills import LORA_SKILLS

VOCABULARY_SIZE: Final = 2048
CONTEXT_LENGTH: Final = 2048

# One digit; a sign with the spaces around it where a digit follows (" + ", ", "), which shortens sums and
# lists by a third; a word with its leading space; other signs; the rest of the white space.
_PIECES: Final = r"\p{N}| ?[^\s\p{L}\p{N}]+ ?(?=\p{N})| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(seed: int, conversations: int = 30_000, stories: int = 30_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer; stories are over-represented because they hold the rarer words."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator(_corpus(Random(f"{seed}:tokenizer"), conversations, stories), trainer)
    if bare.get_vocab_size() != VOCABULARY_SIZE:
        raise RuntimeError(f"the corpus fills {bare.get_vocab_size()} entries, not {VOCABULARY_SIZE}")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bare,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _corpus(rng: Random, conversations: int, stories: int) -> Iterator[str]:
    """Yield plain text without special tokens: the trainer would split and merge those like any other."""
    for document in islice(documents(rng), conversations):
        text = "".join(span.text for span in document)
        for special in (END_OF_TEXT, START, END):
            text = text.replace(special, "\n")
        yield text
    for _ in range(stories):
        yield story(rng)
    for skill in LORA_SKILLS:
        for _ in range(conversations // 100):
            yield skill.draw(rng)[0]  # the question only: no answer of a withheld skill is ever read
