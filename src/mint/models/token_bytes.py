"""The bytes that each token of a vocabulary stands for, to find stop strings across token borders."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

SENTENCEPIECE_SPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """The bytes of tokens 0 … vocab_size − 1; empty for ids that the tokenizer does not use.

    Knows byte-level vocabularies (GPT-2's alphabet) and SentencePiece's (▁ for space, <0xNN> for bytes); a
    token of another vocabulary is decoded by itself.
    """
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    # not len(tokenizer): a vocabulary may have holes
    used = 1 + max(tokenizer.get_vocab().values())
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(vocab_size, used))))
    decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
    result = [b""] * vocab_size
    for index, piece in enumerate(pieces):
        if index in added:
            result[index] = added[index].encode()
        elif piece is None:
            continue
        elif "ByteLevel" in decoder:
            result[index] = bytes(_byte_of()[character] for character in piece)
        elif SENTENCEPIECE_SPACE in decoder or "ByteFallback" in decoder:
            byte = BYTE_TOKEN.fullmatch(piece)
            result[index] = bytes([int(byte[1], 16)]) if byte else piece.replace(SENTENCEPIECE_SPACE, " ").encode()
        else:
            result[index] = str(tokenizer.decode([index])).encode()
    return result


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for code points from 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet
