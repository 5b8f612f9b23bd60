"""Conversations only grow: prompt, the tokens that were sampled, what comes behind them."""

from __future__ import annotations

import pytest

from mint.renderers import Conversation, Message, get_renderer
from tests.renderers.conversations import MORE, QUESTION, RESULT, SYSTEM
from tests.renderers.templates import TEMPLATES, tokenizer_of

OURS = [*TEMPLATES, "tiny"]
TEXT = "A metal 🙂."


def in_pieces(tokenizer, text: str) -> list[int]:
    """A text as no tokenizer would cut it: every character by itself."""
    return [token for character in text for token in tokenizer.encode(character, add_special_tokens=False)]


@pytest.mark.parametrize("family", OURS)
def test_the_next_prompt_is_the_last_one_and_the_very_tokens_and_what_the_template_puts_behind(family: str):
    renderer = get_renderer("hf_template", tokenizer_of(family))
    (stop,) = renderer.get_stop_sequences()
    conversation = Conversation(renderer, [SYSTEM, QUESTION])
    first = conversation.prompt.to_ints()
    sampled = [*in_pieces(renderer.tokenizer, TEXT), stop]
    assert sampled != [*renderer.tokenizer.encode(TEXT, add_special_tokens=False), stop]
    message, termination = conversation.add_sampled(sampled)
    assert (TEXT in str(message["content"]), termination.is_clean) == (True, True)
    conversation.add(MORE)
    second = conversation.prompt.to_ints()
    assert second[: len(first) + len(sampled)] == first + sampled
    assert conversation.weights == [0.0] * len(first) + [1.0] * len(sampled) + [0.0] * (
        len(second) - len(first) - len(sampled)
    )
    # the same words, and behind the answer the same tokens, as the renderer writes for these messages
    if renderer.has_extension_property and family != "qwen-keeps":
        rendered = renderer.build_generation_prompt([SYSTEM, QUESTION, message, MORE]).to_ints()
        lead = renderer.template.lead
        text = renderer.tokenizer.decode(rendered).replace(f"{lead}{TEXT}", TEXT) if lead else None
        assert renderer.tokenizer.decode(second) == (text or renderer.tokenizer.decode(rendered))
        behind = second[len(first) + len(sampled) :]
        assert rendered[-len(behind) :] == behind


@pytest.mark.parametrize("family", OURS)
def test_an_answer_that_was_cut_off_is_closed_without_weight(family: str):
    renderer = get_renderer("hf_template", tokenizer_of(family))
    (stop,) = renderer.get_stop_sequences()
    sampled = in_pieces(renderer.tokenizer, TEXT)
    cut, whole = Conversation(renderer, [QUESTION]), Conversation(renderer, [QUESTION])
    cut.add_sampled(sampled)
    whole.add_sampled([*sampled, stop])
    cut.add(MORE)
    whole.add(MORE)
    assert cut.tokens == whole.tokens
    assert sum(cut.weights) == sum(whole.weights) - 1


def test_results_of_tools_follow_a_call():
    renderer = get_renderer("hf_template", tokenizer_of("qwen"))
    conversation = Conversation(renderer, [QUESTION])
    call = (
        '<think>\nHm.\n</think>\n\n<tool_call>\n{"name":"look_up","arguments":{"word":"tin"}}\n</tool_call><|im_end|>'
    )
    message, _ = conversation.add_sampled(renderer.tokenizer.encode(call))
    assert message["tool_calls"][0].function.name == "look_up"
    conversation.add(RESULT)
    expected = (
        "<|im_start|>user\nWhat is tin?<|im_end|>\n<|im_start|>assistant\n" + call + "\n<|im_start|>user"
        "\n<tool_response>\na metal\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.tokenizer.decode(conversation.prompt.to_ints()) == expected


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("role_colon", " A metal.\n\nUser:", " A metal.\n\nUser: And?\n\nAssistant:"),
        ("role_colon", " A met", " A met\n\nUser: And?\n\nAssistant:"),
        (
            "gpt_oss_no_sysprompt",
            "<|channel|>final<|message|>Tin.<|return|>",
            "<|channel|>final<|message|>Tin.<|return|><|start|>user<|message|>And?<|end|><|start|>assistant",
        ),
        ("qwen3", "<think>\nHm.\n</think>\n\nTin.<|im_end|>", None),
        ("deepseekv3_thinking", "Hm.</think>Tin.<｜end▁of▁sentence｜>", None),
        ("kimi_k2", "<think>Hm.</think>Tin.<|im_end|>", None),
        ("llama3", "Tin.<|eot_id|>", None),
    ],
)
def test_it_works_with_the_cookbooks_renderers(name: str, said: str, expected: str | None):
    tokenizer = tokenizer_of("deepseek" if "deepseek" in name else "none")
    renderer = get_renderer(name, tokenizer)
    conversation = Conversation(renderer, [QUESTION])
    first = conversation.prompt.to_ints()
    sampled = tokenizer.encode(said, add_special_tokens=False)
    conversation.add_sampled(sampled)
    question: Message = {"role": "user", "content": "And?"}
    conversation.add(question)
    second = conversation.prompt.to_ints()
    assert second[: len(first) + len(sampled)] == first + sampled
    if expected:
        assert tokenizer.decode(second) == tokenizer.decode(first) + expected
    # from the last end of a turn on it is what the renderer writes
    behind = tokenizer.decode(second[len(first) + len(sampled) :])
    rendered = renderer.build_generation_prompt([QUESTION, {"role": "assistant", "content": "Tin."}, question])
    assert tokenizer.decode(rendered.to_ints()).endswith(behind)
    assert "And?" in behind


def test_answers_and_messages_alternate():
    conversation = Conversation(get_renderer("hf_template", tokenizer_of("tiny")), [QUESTION])
    with pytest.raises(ValueError, match="sample from prompt"):
        conversation.add(MORE)
    conversation.add_sampled([5, 2])
    with pytest.raises(ValueError, match="no second answer"):
        conversation.add_sampled([5, 2])
    with pytest.raises(ValueError, match="add what is said"):
        _ = conversation.prompt
