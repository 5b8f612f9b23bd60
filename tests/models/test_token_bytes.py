"""The bytes of tokens, for byte-level and SentencePiece-like vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mint.models.token_bytes import token_bytes
from mint.tiny import model_path

VOCAB = 2048


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module")
def tiny_bytes(tiny: Any) -> list[bytes]:
    return token_bytes(tiny, VOCAB)


def text_of(tokenizer: Any, pieces: list[bytes], text: str) -> bytes:
    return b"".join(pieces[token] for token in tokenizer.encode(text, add_special_tokens=False))


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_the_bytes_of_any_text_are_its_utf8(tiny: Any, tiny_bytes: list[bytes], text: str) -> None:
    assert text_of(tiny, tiny_bytes, text) == text.encode()


@pytest.mark.parametrize("text", ["", " a", "\n\n\t", "naïve ½ €", "日本語", "👩‍🚀", "\x00\x7f\xa0\xad"])
def test_texts_that_split_characters(tiny: Any, tiny_bytes: list[bytes], text: str) -> None:
    assert text_of(tiny, tiny_bytes, text) == text.encode()


def test_special_tokens_stand_for_their_names(tiny: Any, tiny_bytes: list[bytes]) -> None:
    assert tiny_bytes[2] == b"<|im_end|>"
    text = "<|im_start|>user\nhello<|im_end|>"
    assert text_of(tiny, tiny_bytes, text) == text.encode()


def test_every_byte_has_a_token(tiny_bytes: list[bytes]) -> None:
    assert {bytes([byte]) for byte in range(256)} <= set(tiny_bytes)
    assert all(tiny_bytes)


def test_a_vocabulary_larger_or_smaller_than_the_tokenizers(tiny: Any, tiny_bytes: list[bytes]) -> None:
    """Models pad their vocabulary; ids that the tokenizer lacks have no bytes."""
    assert token_bytes(tiny, VOCAB + 5) == [*tiny_bytes, *[b""] * 5]
    assert token_bytes(tiny, 100) == tiny_bytes[:100]


# --- SentencePiece ------------------------------------------------------------------------------------------

PIECES = [
    "<unk>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "h",
    "e",
    "l",
    "o",
    "lo",
    "▁he",
    "▁hel",
    "▁hello",
    "▁▁",
    "é",
]
MERGES = [("▁", "▁"), ("l", "o")]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As the converted tokenizers of Llama 2 and Mistral: BPE over ▁, unknown characters as bytes."""
    vocab = {piece: index for index, piece in enumerate(PIECES)}
    merges = [*MERGES, ("▁", "h"), ("▁h", "e"), ("▁he", "l"), ("▁hel", "lo")]
    vocab["▁h"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("helo é€日\n\t👍<>0xA▂"), min_size=1))
def test_sentencepiece_text_is_its_utf8_behind_a_space(text: str) -> None:
    tokenizer = sentencepiece_like()
    assert text_of(tokenizer, token_bytes(tokenizer, len(tokenizer)), text) == b" " + text.encode()


def test_sentencepiece_pieces() -> None:
    tokenizer = sentencepiece_like()
    pieces = token_bytes(tokenizer, len(tokenizer) + 2)
    of = {piece: pieces[index] for piece, index in tokenizer.get_vocab().items()}
    assert of["▁hello"] == b" hello"
    assert of["▁▁"] == b"  "
    assert of["é"] == b"\xc3\xa9"
    assert of["<0x0A>"] == b"\n"
    assert of["<0xE2>"] == b"\xe2"
    assert of["</s>"] == b"</s>"
    assert pieces[-2:] == [b"", b""]


def test_metaspace() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -1.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert token_bytes(fast, 3)[1:] == [b" a", b"b"]


def test_another_vocabulary_is_decoded() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1, "Wörter": 2}, unk_token="[UNK]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert token_bytes(fast, 4) == [b"[UNK]", b"word", "Wörter".encode(), b""]


def test_ids_beyond_a_hole_in_the_vocabulary(tiny: Any) -> None:
    """Some vocabularies skip ids, so the largest id is not their length minus one."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "far": 9}, unk_token="[UNK]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert token_bytes(fast, 12)[8:11] == [b"", b"far", b""]
