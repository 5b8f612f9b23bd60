"""Tokenizers and chat templates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mint.errors import BadRequestError
from mint.server.openai.tokenizer import load_tokenizer
from mint.tiny import model_path

from .world import TEMPLATES, tokenizer_folder

TEXT = "Hé <|im_end|> two 🎈"


def test_it_tokenizes_as_the_models_own_tokenizer_does() -> None:
    tokenizer, own = load_tokenizer(str(model_path()), 2048), AutoTokenizer.from_pretrained(model_path())
    tokens, offsets = tokenizer.encode(TEXT)
    assert tokens.tolist() == own.encode(TEXT)
    assert tokenizer.text_of(tokens.tolist())[0] == TEXT
    assert [TEXT[start] for start in offsets[:2]] == ["H", "é"]


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template != ""])
def test_it_renders_chats_as_transformers_does(name: str, tmp_path: Path) -> None:
    folder = tokenizer_folder(name, tmp_path)
    chat = [{"role": "system", "content": "be é"}, {"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tools=tools, add_generation_prompt=True, return_dict=False, quiet=True
    )
    assert load_tokenizer(folder, 2048).encode_chat(chat, tools, {"quiet": True}).tolist() == expected


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match=r"no tokenizer\.json"):
        load_tokenizer(str(tmp_path), 10)


def test_first_requests_may_come_at_once() -> None:
    program = (
        "from concurrent.futures import ThreadPoolExecutor;"
        "from mint.server.openai.tokenizer import load_tokenizer; from mint.tiny import model_path;"
        "pool = ThreadPoolExecutor(8);"
        "print(len({id(t) for t in pool.map(load_tokenizer, [str(model_path())] * 8, [2048] * 8)}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "1\n", done.stderr
