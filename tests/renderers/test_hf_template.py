"""`hf_template` over chat templates of many kinds: what holds for each template and conversation."""

from __future__ import annotations

import pickle

import pytest

from mint.renderers import ChatTemplateError, HFTemplateRenderer, ParseTermination, TrainOnWhat, get_renderer
from tests.renderers.conversations import (
    ANSWER,
    CALLING,
    MORE,
    OTHER,
    PLAIN,
    QUESTION,
    REASONED,
    REASONING,
    SYSTEM,
    TOOL,
    WITH_TOOLS,
    answer_of,
    plain,
)
from tests.renderers.templates import TEMPLATES, tokenizer_of

FAMILIES = [*TEMPLATES, "tiny"]
EXTENDING = {"chatml", "qwen-keeps", "llama", "gemma", "mistral", "tiny"}
CASES = [pytest.param(family, name, id=f"{family}, {name}") for family in FAMILIES for name in PLAIN] + [
    pytest.param(family, name, id=f"{family}, {name}")
    for family in ("qwen", "qwen-keeps", "deepseek")
    for name in (*REASONING, *(WITH_TOOLS if family != "deepseek" else ()))
]
ALL = PLAIN | REASONING | WITH_TOOLS

RENDERERS: dict[str, HFTemplateRenderer] = {}


def renderer_of(family: str) -> HFTemplateRenderer:
    if family not in RENDERERS:
        RENDERERS[family] = get_renderer("hf_template", tokenizer_of(family))
    return RENDERERS[family]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_prompt_is_what_the_template_writes(family: str, name: str):
    renderer, messages = renderer_of(family), ALL[name][:-1]
    for_template = [renderer.to_openai_message(message) for message in messages]
    expected = renderer.tokenizer.apply_chat_template(for_template, add_generation_prompt=True, return_dict=False)
    prompt = renderer.build_generation_prompt(messages)
    assert prompt.to_ints() == expected
    assert all(chunk.length for chunk in prompt.chunks)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_an_example_is_what_the_template_writes_to_the_end_of_the_last_message(family: str, name: str):
    renderer, messages = renderer_of(family), ALL[name]
    text = renderer.tokenizer.apply_chat_template([renderer.to_openai_message(m) for m in messages], tokenize=False)
    example, weights = renderer.build_supervised_example(messages)
    assert renderer.tokenizer.decode(example.to_ints()) == text.rstrip("\n")
    assert example.length == len(weights)
    assert all(chunk.length for chunk in example.chunks)


# the prompt of this template opens reasoning, which the template then writes only where there is some
PROMPTED = [case for case in CASES if case.values[0] != "deepseek" or case.values[1] in REASONING]


@pytest.mark.parametrize(("family", "name"), PROMPTED)
def test_an_example_begins_with_the_prompt_which_has_no_weight_and_the_rest_has(family: str, name: str):
    renderer, messages = renderer_of(family), ALL[name]
    prompt = renderer.build_generation_prompt(messages[:-1]).to_ints()
    example, weights = renderer.build_supervised_example(messages)
    assert example.to_ints()[: len(prompt)] == prompt
    assert weights.tolist() == [0] * len(prompt) + [1] * (example.length - len(prompt))


@pytest.mark.parametrize(("family", "name"), PROMPTED)
def test_an_answer_is_read_back_and_one_cut_off_is_malformed(family: str, name: str):
    renderer, messages = renderer_of(family), ALL[name]
    example, weights = renderer.build_supervised_example(messages)
    answer = answer_of(example.to_ints(), weights)
    message, termination = renderer.parse_response(answer)
    assert termination == ParseTermination.STOP_SEQUENCE
    assert plain(message) == plain(messages[-1])
    for length in range(len(answer)):
        assert renderer.parse_response(answer[:length])[1] == ParseTermination.MALFORMED


@pytest.mark.parametrize(("family", "name"), CASES)
def test_streamed_deltas_add_up(family: str, name: str):
    renderer = renderer_of(family)
    example, weights = renderer.build_supervised_example(ALL[name])
    answer = answer_of(example.to_ints(), weights)
    for length in range(len(answer) + 1):  # also within characters, marks and calls
        *deltas, last = list(renderer.parse_response_streaming(answer[:length]))
        whole = plain(renderer.parse_response(answer[:length])[0])
        assert plain(last) == whole
        assert "".join(getattr(delta, "thinking", "") for delta in deltas) == whole["thinking"]
        assert "".join(getattr(delta, "text", "") for delta in deltas) == whole["text"]
    assert "\ufffd" not in whole["text"] + whole["thinking"]
    assert sum(hasattr(delta, "text") for delta in deltas) > 1 or not whole["text"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_prompt_begins_with_an_earlier_one_and_its_answer_just_where_that_is_said(family: str):
    renderer = renderer_of(family)
    assert renderer.has_extension_property == (family in EXTENDING)
    answers = [ANSWER, OTHER, REASONED]
    kept = []
    for first in answers:
        conversation = [QUESTION, first, MORE, ANSWER, QUESTION]
        for end in (2, 4):
            prompt = renderer.build_generation_prompt(conversation[: end - 1]).to_ints()
            answered = renderer.build_supervised_example(conversation[:end])[0].to_ints()
            later = renderer.build_generation_prompt(conversation[: end + 1]).to_ints()
            kept.append(answered[: len(prompt)] == prompt and later[: len(answered)] == answered)
    assert all(kept) == renderer.has_extension_property


@pytest.mark.parametrize("family", FAMILIES)
def test_each_way_to_train_weighs_the_messages_it_names(family: str):
    renderer = renderer_of(family)
    messages = [SYSTEM, QUESTION, ANSWER, MORE, OTHER]
    said = {
        TrainOnWhat.LAST_ASSISTANT_MESSAGE: [OTHER],
        TrainOnWhat.LAST_ASSISTANT_TURN: [OTHER],
        TrainOnWhat.ALL_ASSISTANT_MESSAGES: [ANSWER, OTHER],
        TrainOnWhat.ALL_MESSAGES: messages,
        TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES: [SYSTEM, QUESTION, MORE],
    }
    for train_on_what, trained in said.items():
        example, weights = renderer.build_supervised_example(messages, train_on_what)
        text = renderer.tokenizer.decode(answer_of(example.to_ints(), weights))
        for message in messages:
            assert (message["content"] in text) == (message in trained), (train_on_what, text)
        assert "assistant" not in text


def test_what_the_user_says_is_tokenized_as_in_prompts():
    renderer = renderer_of("mistral")  # which writes a space before it
    prompt = renderer.build_generation_prompt([QUESTION]).to_ints()
    example, weights = renderer.build_supervised_example([QUESTION, ANSWER], TrainOnWhat.ALL_MESSAGES)
    assert example.to_ints()[: len(prompt)] == prompt
    assert renderer.tokenizer.decode(answer_of(example.to_ints(), weights)) == " What is tin? A metal.<|end_of_text|>"


def test_all_tokens_weigh_but_the_first_of_all():
    renderer = renderer_of("llama")
    _, weights = renderer.build_supervised_example([QUESTION, ANSWER], TrainOnWhat.ALL_TOKENS)
    assert weights.tolist() == [0] + [1] * (len(weights) - 1)


def test_customized_training_weighs_what_is_marked_and_refuses_what_is_not():
    renderer = renderer_of("chatml")
    marked = [QUESTION | {"trainable": False}, ANSWER | {"trainable": True}, MORE | {"trainable": True}]
    example, weights = renderer.build_supervised_example(marked, TrainOnWhat.CUSTOMIZED)
    text = renderer.tokenizer.decode(answer_of(example.to_ints(), weights))
    assert text == f"{ANSWER['content']}<|im_end|>{MORE['content']}<|im_end|>"
    with pytest.raises(ValueError, match=r"messages\[0\]\.trainable is missing"):
        renderer.build_supervised_example([QUESTION, ANSWER], TrainOnWhat.CUSTOMIZED)
    with pytest.raises(ValueError, match=r"messages\[0\]\.trainable is for CUSTOMIZED"):
        renderer.build_supervised_example(marked)


def test_an_answer_that_would_be_tokenized_together_with_the_prompt_is_cut_where_the_prompt_ends():
    renderer = renderer_of("llama")
    messages = [QUESTION, {"role": "assistant", "content": "\n\nWell."}]
    joined = renderer.tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = renderer.build_generation_prompt(messages[:1]).to_ints()
    assert joined[: len(prompt)] != prompt  # else this test would show nothing
    example, weights = renderer.build_supervised_example(messages)
    assert example.to_ints()[: len(prompt)] == prompt
    assert weights.sum() == example.length - len(prompt)


@pytest.mark.parametrize("family", ["qwen", "qwen-keeps"])
def test_tools_reach_the_template(family: str):
    renderer = renderer_of(family)
    messages = [*renderer.create_conversation_prefix_with_tools([TOOL], SYSTEM["content"]), QUESTION]
    expected = renderer.tokenizer.apply_chat_template(
        [SYSTEM, QUESTION],
        tools=[{"type": "function", "function": TOOL}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert renderer.build_generation_prompt(messages).to_ints() == expected
    example, weights = renderer.build_supervised_example([*messages, CALLING])
    assert plain(renderer.parse_response(answer_of(example.to_ints(), weights))[0]) == plain(CALLING)


def test_a_template_without_tools_says_so():
    with pytest.raises(NotImplementedError, match="no place for tools"):
        renderer_of("chatml").create_conversation_prefix_with_tools([TOOL])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefill_stands_behind_the_prompt(family: str):
    renderer = renderer_of(family)
    prompt = renderer.build_generation_prompt([QUESTION]).to_ints()
    with_prefill = renderer.build_generation_prompt([QUESTION], prefill="I think").to_ints()
    assert with_prefill == prompt + renderer.tokenizer.encode("I think", add_special_tokens=False)


def test_a_prompt_for_the_user_ends_with_the_users_header():
    prompt = renderer_of("chatml").build_generation_prompt([QUESTION, ANSWER], role="user")
    assert renderer_of("chatml").tokenizer.decode(prompt.to_ints()).endswith("A metal.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_pickles(family: str):
    renderer = renderer_of(family)
    revived = pickle.loads(pickle.dumps(renderer))
    example, weights = renderer.build_supervised_example([QUESTION, OTHER])
    again, weights_again = revived.build_supervised_example([QUESTION, OTHER])
    assert (again, weights_again.tolist()) == (example, weights.tolist())
    assert pickle.loads(pickle.dumps(revived)).get_stop_sequences() == renderer.get_stop_sequences()


def test_what_a_template_refuses_is_an_error_that_quotes_it():
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        renderer_of("gemma").build_generation_prompt([QUESTION, QUESTION])


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ChatTemplateError, match="no chat_template"):
        get_renderer("hf_template", tokenizer_of("none"))


def test_images_are_refused():
    with pytest.raises(ValueError, match="'image'"):
        renderer_of("qwen").build_generation_prompt([{"role": "user", "content": [{"type": "image", "image": "x"}]}])


def test_thinking_can_be_turned_off_where_the_template_can():
    renderer = get_renderer("hf_template_disable_thinking", tokenizer_of("qwen"))
    prompt = renderer.build_generation_prompt([QUESTION]).to_ints()
    assert renderer.tokenizer.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    example, weights = renderer.build_supervised_example([QUESTION, ANSWER])
    assert renderer.tokenizer.decode(answer_of(example.to_ints(), weights)) == "A metal.<|im_end|>"
    assert plain(renderer.parse_response(answer_of(example.to_ints(), weights))[0]) == plain(ANSWER)
    with pytest.raises(ValueError, match="say not to"):
        renderer.build_supervised_example([QUESTION, REASONED])
    assert pickle.loads(pickle.dumps(renderer)).build_generation_prompt([QUESTION]).to_ints() == prompt
