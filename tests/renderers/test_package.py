"""The package itself: without the cookbook, without torch; which renderer a model is used with."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from mint.renderers import ChatTemplate, get_renderer, recommended_renderer, recommended_renderers
from tests.renderers.conversations import ANSWER, QUESTION
from tests.renderers.templates import tokenizer_of


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_cookbook_an_error_names_the_extra_and_chat_templates_work():
    run(
        "import sys; sys.modules['tinker_cookbook'] = None\n"
        "import mint.renderers\n"
        "try:\n    mint.renderers.get_renderer\n"
        "except ImportError as error:\n    assert 'mint[cookbook]' in str(error), error\n"
        "else:\n    raise SystemExit(1)\n"
        "from transformers import PreTrainedTokenizerFast; from mint.tiny import model_path\n"
        "template = mint.renderers.ChatTemplate(PreTrainedTokenizerFast.from_pretrained(model_path()))\n"
        "assert len(template.prompt([{'role': 'user', 'content': 'Hi'}])) > 5\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_a_pickle_brings_the_package_with_it():
    renderer = get_renderer("hf_template", tokenizer_of("tiny"), model_name="mint/tiny")
    program = (
        "import pickle, sys\n"
        f"renderer = pickle.loads({pickle.dumps(renderer)!r})\n"
        "print(*renderer.build_generation_prompt([{'role': 'user', 'content': 'What is tin?'}]).to_ints())\n"
        "assert pickle.loads(pickle.dumps(renderer))._model_name == 'mint/tiny'\n"
    )
    assert [int(word) for word in run(program).split()] == renderer.build_generation_prompt([QUESTION]).to_ints()


def test_the_recommended_renderer():
    assert recommended_renderers("Qwen/Qwen3-8B") == ["qwen3", "qwen3_disable_thinking"]
    assert recommended_renderers("Qwen/Qwen3-8B", tokenizer_of("qwen"))[:3] == [
        "qwen3",
        "qwen3_disable_thinking",
        "hf_template",
    ]
    assert recommended_renderer("mint/tiny", tokenizer_of("tiny")) == "hf_template"
    assert recommended_renderers("my/model", tokenizer_of("qwen")) == ["hf_template", "hf_template_disable_thinking"]
    assert recommended_renderer("my/base-model", tokenizer_of("none")) == "role_colon"
    with pytest.raises(LookupError, match="pass its tokenizer"):
        recommended_renderer("my/model")


def test_what_a_response_template_declares_is_read_by_it():
    tokenizer = tokenizer_of("chatml")
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "thinking": {"open": "(thinks:", "close": ")"},
            "content": {},
        },
    }
    renderer = get_renderer("hf_template", tokenizer)
    answer = tokenizer.encode("(thinks:Hm.)A metal.<|im_end|>")
    message, termination = renderer.parse_response(answer)
    assert message["content"] == [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A metal."}]
    assert termination.is_clean
    assert list(renderer.parse_response_streaming(answer))[-1] == message


def test_a_template_tells_what_it_is_like():
    template = ChatTemplate(tokenizer_of("qwen"), {"enable_thinking": False})
    assert template.opening == "<think>\n\n</think>\n\n"
    assert (template.reasoning_field, template.takes_tools, template.arguments_are_text) == (
        "reasoning_content",
        True,
        False,
    )
    assert template.text([QUESTION, ANSWER]).endswith("A metal.<|im_end|>\n")
    concatenating = tokenizer_of("none")
    concatenating.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ 'call ' + call.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert ChatTemplate(concatenating).arguments_are_text
