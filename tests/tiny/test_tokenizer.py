"""The shipped tokenizer loses nothing, has no idle entry and speaks ChatML."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint.tiny import model_path
from mint.tiny.recipe.corpus import prompt
from mint.tiny.recipe.tokenizer import VOCABULARY_SIZE

SHIPPED = AutoTokenizer.from_pretrained(model_path())


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return SHIPPED


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips(text: str):
    assert SHIPPED.decode(SHIPPED.encode(text)) == text


def test_every_id_is_a_token(tokenizer: PreTrainedTokenizerBase):
    assert len(tokenizer) == VOCABULARY_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCABULARY_SIZE))


def test_each_digit_is_a_token(tokenizer: PreTrainedTokenizerBase):
    assert tokenizer.tokenize("1729") == ["1", "7", "2", "9"]
    with_digits = [token for token in tokenizer.get_vocab() if re.search("[0-9]", token)]
    assert sorted(with_digits) == list("0123456789")


def test_special_tokens(tokenizer: PreTrainedTokenizerBase):
    assert (tokenizer.pad_token, tokenizer.bos_token) == ("<|endoftext|>", "<|endoftext|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]


def test_chat_template(tokenizer: PreTrainedTokenizerBase):
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 + 2 = ?"},
        {"role": "assistant", "content": "4"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe short.<|im_end|>\n"
        "<|im_start|>user\n2 + 2 = ?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n"
    )
    asked = tokenizer.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert asked == prompt("2 + 2 = ?")
