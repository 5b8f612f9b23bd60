"""Chat templates in the style of the families, written for these tests, and tokenizers that have them."""

from __future__ import annotations

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mint.tiny import model_path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Reasoning is written for answers behind the last question only; tools in Hermes's format; thinking can be turned off.
QWEN = r"""{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n\n<tools>' }}
{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
{{- '\n</tools>\nCall as <tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content or '' %}
{%- set reasoning = m.reasoning_content or '' %}
{%- if not reasoning and '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if ns.last >= 0 and loop.index0 > ns.last and (loop.last or reasoning) %}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- content }}{%- endif %}
{%- for call in m.tool_calls or [] %}
{%- if not loop.first or content %}{{- '\n' }}{%- endif %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments if call.function.arguments is string else call.function.arguments | tojson) }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

# The same with reasoning kept, as it is for agents: nothing of a conversation is ever rewritten.
QWEN_KEEPS = QWEN.replace("ns.last >= 0 and loop.index0 > ns.last and (loop.last or reasoning)", "true")

# The prompt opens the reasoning, and the history drops it.
DEEPSEEK = (
    "{{ '<｜begin▁of▁sentence｜>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' }}"
    "{% if loop.last and '</think>' in m.content %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% endif %}"
    "{{ '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)

LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# A system message becomes part of the first question; contents are trimmed.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# No header before an answer, the end of a sentence behind it.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '[SYSTEM] ' + m.content + ' [/SYSTEM]' }}{% endif %}{% endfor %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "qwen": QWEN,
    "qwen-keeps": QWEN_KEEPS,
    "deepseek": DEEPSEEK,
    "llama": LLAMA,
    "gemma": GEMMA,
    "mistral": MISTRAL,
}

_SPECIAL = """
<|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>
<start_of_turn> <end_of_turn> [INST] [/INST] [SYSTEM] [/SYSTEM] <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜>
<｜Assistant｜> <｜System｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜>
<｜tool▁sep｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜> <｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <|im_user|>
<|im_assistant|> <|im_system|> <|im_middle|> <|tool_calls_section_begin|> <|tool_calls_section_end|>
<|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|> <|start|> <|end|> <|message|> <|channel|>
<|return|> <|call|> <|constrain|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|> <|vision_start|>
<|vision_end|> <|image_pad|>
"""
SPECIAL = _SPECIAL.split()
"""Of all families together, so that the renderers of each find theirs."""

NOT_SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
"""Tokens that are text all the same."""

PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""As Llama 3 and Qwen cut text: line breaks stay together, whatever follows them."""

CORPUS = [
    "The user asks a question and the assistant gives an answer. What is the weather in Paris today?",
    '{"name": "look_up", "arguments": {"word": "tin"}} system user assistant tool model',
    "It is a metal, and one of the oldest known. I think so. Two plus two is four; 3 + 4 = 7.",
    "line\n\n\n\nline\n\nline\n\n\n\nline",
    "für alle Wörter, naïve café, 天気はどうですか 🙂",
]


@cache
def _bare() -> str:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    bare.train_from_iterator(CORPUS * 4, trainer)
    bare.add_special_tokens(SPECIAL)
    bare.add_tokens(NOT_SPECIAL)
    return str(bare.to_str())


BOS_EOS = {
    "llama": ("<|begin_of_text|>", "<|eot_id|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma": ("<|begin_of_text|>", "<|endoftext|>"),
    "mistral": ("<|begin_of_text|>", "<|end_of_text|>"),
}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A fresh tokenizer with a family's template; `tiny` is the built-in model's."""
    if family == "tiny":
        return AutoTokenizer.from_pretrained(model_path())
    bos, eos = BOS_EOS.get(family, (None, "<|im_end|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bare()),
        bos_token=bos,
        eos_token=eos,
        chat_template=TEMPLATES.get(family),
        clean_up_tokenization_spaces=False,
    )
