"""`hf_template` against the cookbook's renderers of the same formats: token by token, weight by weight."""

from __future__ import annotations

import pytest

from mint.renderers import TrainOnWhat, get_renderer
from tests.renderers.conversations import (
    ANSWER,
    CALLING,
    MORE,
    OTHER,
    QUESTION,
    REASONED,
    RESULT,
    SYSTEM,
    answer_of,
    plain,
)
from tests.renderers.templates import tokenizer_of

TWO_TURNS = [SYSTEM, QUESTION, OTHER, MORE, ANSWER]
CONVERSATIONS = {
    "one turn": [QUESTION, ANSWER],
    "two turns": TWO_TURNS,
    "ends with a question": [QUESTION, ANSWER, MORE],
    "reasoning": [QUESTION, ANSWER, MORE, REASONED],
    "reasoning in the past": [QUESTION, REASONED, MORE, ANSWER],
    "a call": [QUESTION, CALLING],
    "a result": [QUESTION, CALLING, RESULT],
}
# What the template and not the speaker writes. Where the cookbook's weights are for the whole message they include it.
NO_FRAME = {""}
ANY_FRAME = {"", "<tool_response>\n", "<think>\n\n</think>\n\n"}
FRAMES = {
    TrainOnWhat.LAST_ASSISTANT_MESSAGE: NO_FRAME,
    TrainOnWhat.LAST_ASSISTANT_TURN: NO_FRAME,
    TrainOnWhat.ALL_ASSISTANT_MESSAGES: ANY_FRAME,
    TrainOnWhat.ALL_MESSAGES: ANY_FRAME,
    TrainOnWhat.ALL_TOKENS: NO_FRAME,
    TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES: NO_FRAME,
    TrainOnWhat.CUSTOMIZED: ANY_FRAME,
}
TEXT_ONLY = {"one turn", "two turns", "ends with a question"}
PAIRS = {
    "chatml": ("hf_template", "qwen3_instruct", TEXT_ONLY),
    "llama": ("hf_template", "llama3", TEXT_ONLY),
    "qwen": ("hf_template", "qwen3", CONVERSATIONS.keys()),
    "qwen without thinking": ("hf_template_disable_thinking", "qwen3_disable_thinking", TEXT_ONLY),
}
CASES = [
    pytest.param(pair, name, id=f"{pair}, {name}")
    for pair, (_, _, names) in PAIRS.items()
    for name in CONVERSATIONS
    if name in names
]


def both(pair: str):
    ours, theirs, _ = PAIRS[pair]
    tokenizer = tokenizer_of(pair.partition(" ")[0])
    return get_renderer(ours, tokenizer), get_renderer(theirs, tokenizer)


@pytest.mark.parametrize(("pair", "name"), CASES)
def test_prompts_are_equal(pair: str, name: str):
    ours, theirs = both(pair)
    messages = CONVERSATIONS[name]
    for end in (len(messages) - 1, len(messages)):
        expected = theirs.build_generation_prompt(messages[:end]).to_ints()
        assert ours.build_generation_prompt(messages[:end]).to_ints() == expected
    with_prefill = theirs.build_generation_prompt(messages, prefill="I say").to_ints()
    assert ours.build_generation_prompt(messages, prefill="I say").to_ints() == with_prefill


@pytest.mark.parametrize("train_on_what", TrainOnWhat)
@pytest.mark.parametrize(("pair", "name"), CASES)
def test_examples_are_equal(pair: str, name: str, train_on_what: TrainOnWhat):
    ours, theirs = both(pair)
    messages = CONVERSATIONS[name]
    if train_on_what == TrainOnWhat.CUSTOMIZED:
        messages = [message | {"trainable": place % 2 == 0} for place, message in enumerate(messages)]
    example, weights = ours.build_supervised_example(messages, train_on_what)
    expected, expected_weights = theirs.build_supervised_example(messages, train_on_what)
    assert example.to_ints() == expected.to_ints()
    more = expected_weights - weights
    assert (more >= 0).all()
    assert ours.tokenizer.decode(answer_of(example.to_ints(), more)) in FRAMES[train_on_what]


@pytest.mark.parametrize(("pair", "name"), CASES)
def test_lists_of_examples_are_equal(pair: str, name: str):
    ours, theirs = both(pair)
    examples = ours.build_supervised_examples(CONVERSATIONS[name], TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    expected = theirs.build_supervised_examples(CONVERSATIONS[name], TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    assert [(e.to_ints(), w.tolist()) for e, w in examples] == [(e.to_ints(), w.tolist()) for e, w in expected]


@pytest.mark.parametrize(
    "text",
    [
        "A metal.<|im_end|>",
        "<think>\nHm.\n</think>\n\nA metal.<|im_end|>",
        '<tool_call>\n{"name": "look_up", "arguments": {"word": "tin"}}\n</tool_call><|im_end|>',
        '<tool_call>\n{"name": "look_up", "arg</tool_call><|im_end|>',
        '<tool_call>\n{"name": "look_up"<|im_end|>',
        "A metal",
    ],
)
def test_responses_are_read_alike(text: str):
    ours, theirs = both("qwen")
    tokens = ours.tokenizer.encode(text)
    message, termination = ours.parse_response(tokens)
    expected, expected_termination = theirs.parse_response(tokens)
    assert termination == expected_termination
    unparsed = len(message.get("unparsed_tool_calls", []))
    assert unparsed == len(expected.get("unparsed_tool_calls", []))
    # the cookbook leaves a call that is not closed in the text as well
    assert plain(message) == plain(expected) or (unparsed and not message["content"])
    assert ours.get_stop_sequences() == theirs.get_stop_sequences()
    assert ours.has_extension_property == theirs.has_extension_property
