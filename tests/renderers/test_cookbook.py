"""The cookbook's renderers, reached through MinT: what programs rely on, over all that construct offline."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
import tinker_cookbook.renderers
from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.tokenizer_utils import register_tokenizer, unregister_tokenizer

import mint.renderers
from mint.renderers import Message, ParseTermination, Renderer, TrainOnWhat, get_renderer
from tests.renderers.conversations import ANSWER, MORE, OTHER, QUESTION, REASONED, SYSTEM, TOOL, answer_of, plain
from tests.renderers.templates import tokenizer_of

NAMES = re.findall(r'name == "(\w+)"', inspect.getsource(tinker_cookbook.renderers.get_renderer))
NOT_HERE = {
    "tml_v0": "needs the package tml-renderers",
    "kimi_k31_pro_max_reasoning": "needs the package tml-renderers",
    "kimi_k31_pro_high_reasoning": "needs the package tml-renderers",
    "kimi_k31_pro_low_reasoning": "needs the package tml-renderers",
    "kimi_k31_pro_disable_thinking": "needs the package tml-renderers",
    "kimi_k31_pro_no_reasoning_effort": "needs the package tml-renderers",
}

# Of the cookbook 0.6.1. The first claim to extend, and rewrite an answer without reasoning, or with some; the others
# claim nothing, and extend on what is tried here. `Conversation` extends with all of them.
BREAKS_ITS_WORD = {"qwen3_instruct", "nemotron3_preserve_thinking", "nemotron3_ultra_preserve_thinking"}
CLAIMS_LESS = {
    "qwen3_8_disable_thinking",
    "kimi_k25_disable_thinking",
    "kimi_k26_disable_thinking",
    "kimi_k26_preserve_thinking",
    "nemotron3_disable_thinking",
    "nemotron3_ultra_disable_thinking",
}
OFFLINE = [name for name in NAMES if name not in NOT_HERE]
TOKENIZER = "test/all-families"
RENDERERS: dict[str, Renderer] = {}


@pytest.fixture(scope="module", autouse=True)
def tokenizer():
    tokenizer = tokenizer_of("none")
    register_tokenizer(TOKENIZER, lambda: tokenizer)
    yield tokenizer
    unregister_tokenizer(TOKENIZER)


@pytest.fixture
def renderer(request: pytest.FixtureRequest, tokenizer) -> Renderer:
    name = request.param
    if name not in RENDERERS:
        RENDERERS[name] = get_renderer(name, tokenizer, model_name=TOKENIZER)
    return RENDERERS[name]


every = pytest.mark.parametrize("renderer", OFFLINE, indirect=True)


def test_names_are_the_cookbooks():
    for name in tinker_cookbook.renderers.__all__:
        assert getattr(mint.renderers, name) is getattr(tinker_cookbook.renderers, name)
    assert set(tinker_cookbook.renderers.__all__) < set(dir(mint.renderers)) == set(mint.renderers.__all__)
    assert {"hf_template", "hf_template_disable_thinking"} <= set(mint.renderers.get_registered_renderer_names())
    assert len(OFFLINE) >= 35


@pytest.mark.parametrize("name", NOT_HERE)
def test_what_does_not_construct_offline_is_known(name: str, tokenizer):
    with pytest.raises(Exception, match=r"tml|Tml"):
        get_renderer(name, tokenizer)


@every
def test_prompt_prefill_and_example_agree(renderer: Renderer):
    prompt = renderer.build_generation_prompt([SYSTEM, QUESTION])
    prefilled = renderer.build_generation_prompt([SYSTEM, QUESTION], prefill="I say").to_ints()
    assert prefilled == prompt.to_ints() + renderer.tokenizer.encode("I say", add_special_tokens=False)
    example, weights = renderer.build_supervised_example([SYSTEM, QUESTION, ANSWER])
    assert all(chunk.length for chunk in (*prompt.chunks, *example.chunks))
    assert example.length == len(weights)
    if example.to_ints()[: prompt.length] == prompt.to_ints():  # not where a prompt opens reasoning and there is none
        assert not weights[: prompt.length].any()
        assert weights[prompt.length :].all()
    else:
        assert "<think>" in renderer.tokenizer.decode(prompt.to_ints()[-4:])


@every
def test_an_answer_is_read_back_streamed_and_cut_off(renderer: Renderer):
    example, weights = renderer.build_supervised_example([QUESTION, OTHER])
    answer = answer_of(example.to_ints(), weights)
    message, termination = renderer.parse_response(answer)
    assert termination == ParseTermination.STOP_SEQUENCE
    assert plain(message)["text"].strip() == OTHER["content"]
    assert renderer.parse_response(answer[: len(answer) // 2])[1] == ParseTermination.MALFORMED
    if renderer.supports_streaming:
        *deltas, last = renderer.parse_response_streaming(answer)
        assert plain(last) == plain(message)
        assert "".join(getattr(delta, "text", "") for delta in deltas).strip() == OTHER["content"]


def extends(renderer: Renderer, answer: Message) -> bool:
    prompt = renderer.build_generation_prompt([QUESTION]).to_ints()
    try:
        answered = renderer.build_supervised_example([QUESTION, answer])[0].to_ints()
    except RendererError:  # it takes no reasoning
        return True
    later = renderer.build_generation_prompt([QUESTION, answer, MORE]).to_ints()
    return answered[: len(prompt)] == prompt and later[: len(answered)] == answered


@every
def test_prompts_extend_each_other_just_where_that_is_said(renderer: Renderer):
    holds = all(extends(renderer, answer) for answer in (ANSWER, REASONED))
    is_wrong = renderer._renderer_name in BREAKS_ITS_WORD | CLAIMS_LESS
    assert holds == (renderer.has_extension_property != is_wrong)


@every
def test_pickles(renderer: Renderer):
    revived = pickle.loads(pickle.dumps(renderer))
    for train_on_what in (TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.ALL_TOKENS):
        example, weights = renderer.build_supervised_example([QUESTION, OTHER], train_on_what)
        again, weights_again = revived.build_supervised_example([QUESTION, OTHER], train_on_what)
        assert (again, weights_again.tolist()) == (example, weights.tolist())


@every
def test_tools_come_first_or_are_refused(renderer: Renderer):
    try:
        prefix = renderer.create_conversation_prefix_with_tools([TOOL], "Answer briefly.")
    except NotImplementedError:
        return
    prompt = renderer.tokenizer.decode(renderer.build_generation_prompt([*prefix, QUESTION]).to_ints())
    assert prompt.index("look_up") < prompt.index("What is tin?")
    assert "Answer briefly." in prompt
