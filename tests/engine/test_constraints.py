"""Which tokens a constraint allows, when it ends, and that what is drawn under it matches."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from mint.engine import constraints
from mint.engine.constraints import ConstraintCompiler, ConstraintState, mask_logits
from mint.engine.core import Constraint
from mint.errors import BadRequestError
from mint.models.token_bytes import token_bytes
from tests.engine.constraint_support import COMPILER, ENDS, PERSON, TEXTS, TINY, VOCAB, regex, schema


def allowed(state: ConstraintState, vocab: int = VOCAB) -> set[int]:
    logits = torch.zeros(1, vocab)
    assert mask_logits(logits, {0: state}) == {}
    return {int(token) for token in torch.isfinite(logits[0]).nonzero()}


def sample(constraint: Constraint, seed: int, max_tokens: int = 3000) -> str:
    """Tokens drawn from random logits until the constraint is complete."""
    state, generator, text = COMPILER.start(constraint), torch.Generator().manual_seed(seed), b""
    for _ in range(max_tokens):
        if state.must_stop:
            return text.decode()
        logits = torch.randn(1, VOCAB, generator=generator)
        assert mask_logits(logits, {0: state}) == {}
        token = int(torch.multinomial(logits.softmax(dim=1), 1, generator=generator))
        assert (token in ENDS) <= state.may_stop
        state.accept(token)
        text += b"" if token in ENDS else TEXTS[token]
    pytest.fail(f"not complete after {max_tokens} tokens: {text[:500]!r}")


# --- what is drawn matches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_what_is_drawn_under_a_schema_is_json_that_validates(seed: int) -> None:
    jsonschema.validate(json.loads(sample(schema(PERSON), seed)), PERSON)


def test_an_open_object_is_json() -> None:
    # depth is bounded by luck alone: random logits close brackets as often as they open them
    texts = [sample(schema({"type": "object", "additionalProperties": {"type": "null"}}), seed) for seed in range(5)]
    assert all(set(json.loads(text).values()) <= {None} for text in texts)


@pytest.mark.parametrize(
    "pattern",
    [r"\d{3}-[a-c]+", "(yes|no|perhaps)", "a*b?", "[^\\n]{1,9}", "é+|ß", "(?i)true", r"x|", "^ab$", ""],
)
def test_what_is_drawn_under_a_regex_matches_it(pattern: str) -> None:
    for seed in range(5):
        assert re.fullmatch(pattern, sample(regex(pattern), seed))


LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.tuples(st.integers(-99, 99), st.integers(0, 500)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": sum(pair)}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 5)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": sum(pair)}
    ),
    st.lists(st.one_of(st.text(max_size=5), st.integers(), st.none(), st.booleans()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.text(max_size=5), inner, max_size=3).flatmap(
        lambda properties: (
            st.lists(st.sampled_from(sorted(properties)), unique=True).map(
                lambda required: _object(properties, required)
            )
            if properties
            else st.just(_object({}, []))
        )
    )
    arrays = st.tuples(inner, st.integers(0, 3)).map(lambda p: {"type": "array", "items": p[0], "maxItems": p[1]})
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}))


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@settings(max_examples=60, deadline=None)
@given(st.recursive(LEAVES, _containers, max_leaves=6), st.integers(0, 1 << 30))
def test_any_simple_schema(wanted: dict[str, Any], seed: int) -> None:
    jsonschema.validate(json.loads(sample(schema(wanted), seed)), wanted)


# --- masks --------------------------------------------------------------------------------------------------

LANGUAGES = {
    "(foo|bar)[0-9]{2}": {f"{word}{n:02}" for word in ("foo", "bar") for n in range(100)},
    "(the|there|then) (th)?": {f"{a} {b}" for a, b in product(("the", "there", "then"), ("", "th"))},
    "[aé]{1,3}": {"".join(letters) for n in (1, 2, 3) for letters in product("aé", repeat=n)},
    "|yes": {"", "yes"},
}


def sentencepiece() -> Any:
    """Of Llama's kind: ▁ for space, tokens for single bytes; here every string of up to three of a few letters."""
    pieces = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["".join(letters) for n in (1, 2, 3) for letters in product("▁abfhenortys0123", repeat=n)]
    bare = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    bare.normalizer = normalizers.Replace(" ", "▁")
    bare.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="</s>")


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("pattern", LANGUAGES)
def test_masks_agree_with_brute_force(kind: str, pattern: str) -> None:
    tokenizer, ends = (TINY, ENDS) if kind == "byte-level" else (sentencepiece(), (0,))
    vocab = len(tokenizer) + 29
    texts = token_bytes(tokenizer, vocab)
    compiler, rng = ConstraintCompiler(tokenizer, vocab, ends), np.random.default_rng(0)
    language = {word.encode() for word in LANGUAGES[pattern]}
    for _ in range(4):
        state, text = compiler.start(regex(pattern)), b""
        while not state.must_stop:
            rest = {word[len(text) :] for word in language if word.startswith(text)}
            fits = {i for i, t in enumerate(texts) if t and i not in ends and any(word.startswith(t) for word in rest)}
            got = allowed(state, vocab)
            assert got & set(ends) == (set(ends) if b"" in rest else set()), text
            if len({word[:1] for word in rest}) == 1:  # where the text is certain, so is how it is written
                assert got - set(ends) <= fits
            else:
                assert got - set(ends) == fits, text
            token = int(rng.choice(sorted(got)))
            state.accept(token)
            text += b"" if token in ends else texts[token]
        assert text in language


def test_rows_without_a_constraint_are_left_alone() -> None:
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    assert mask_logits(logits, {1: COMPILER.start(regex("yes"))}) == {}
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    kept = torch.isfinite(logits[1])
    assert 0 < kept.sum() < 4
    assert torch.equal(logits[1, kept], before[1, kept])


def test_special_tokens_are_not_their_text() -> None:
    assert allowed(COMPILER.start(regex(".*"))).isdisjoint({1})
    for token in (1, 2):
        with pytest.raises(BadRequestError, match="nothing that this model can write"):
            COMPILER.start(regex(re.escape(TINY.convert_ids_to_tokens(token))))


# --- the end ------------------------------------------------------------------------------------------------


def test_the_end_is_allowed_exactly_where_the_text_matches() -> None:
    state = COMPILER.start(regex("a(bb)*"))
    (a,), (b,) = (TINY.encode(letter) for letter in "ab")
    seen = []
    for token in (a, b, b):
        assert (allowed(state) >= set(ENDS)) == state.may_stop
        state.accept(token)
        seen.append((state.may_stop, state.must_stop))
    assert seen == [(True, False), (False, False), (True, False)]
    state.accept(ENDS[0])
    assert state.must_stop


def test_a_complete_text_must_stop_without_an_end_token() -> None:
    state = COMPILER.start(regex("ab"))
    for token in TINY.encode("ab"):
        assert not state.must_stop
        state.accept(token)
    assert state.may_stop
    assert state.must_stop


def test_a_copy_goes_its_own_way() -> None:
    state = COMPILER.start(regex("a(x|y)z"))
    for token in TINY.encode("a"):
        state.accept(token)
    before, other = allowed(state), state.copy()
    for token in (*TINY.encode("x"), *TINY.encode("z")):
        other.accept(token)
    assert other.must_stop
    assert allowed(state) == before


def test_one_failed_state_leaves_the_other_rows_right() -> None:
    spent = COMPILER.start(regex("ab"))
    spent.accept(TINY.encode("a")[0])
    with pytest.raises(BadRequestError):
        spent.accept(TINY.encode("x")[0])
    logits = torch.zeros(2, VOCAB)
    failed = mask_logits(logits, {0: spent, 1: COMPILER.start(regex("yes"))})
    assert failed.keys() == {0}
    assert failed[0].field == "response_format"
    assert torch.isfinite(logits[0]).all()
    assert not torch.isfinite(logits[1]).all()


# --- the compiler -------------------------------------------------------------------------------------------


def test_nothing_is_read_before_the_first_constraint() -> None:
    ConstraintCompiler(None, VOCAB, ENDS)


@pytest.mark.parametrize(("tokenizer", "ends"), [(object(), ENDS), (TINY, ())])
def test_models_that_cannot_be_constrained_say_so(tokenizer: Any, ends: tuple[int, ...]) -> None:
    with pytest.raises(BadRequestError, match="cannot be constrained"):
        ConstraintCompiler(tokenizer, VOCAB, ends).start(regex("a"))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(BadRequestError, match="vocab size too small"):
        ConstraintCompiler(TINY, 2000, ENDS).start(regex("a"))


def test_compiled_grammars_are_kept_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    real = constraints.grammar
    monkeypatch.setattr(constraints, "grammar", lambda c: compiled.append(c.text) or real(c))
    monkeypatch.setattr(constraints, "NUM_CACHED", 2)
    compiler = ConstraintCompiler(TINY, VOCAB, ENDS)
    for text in "abacab":
        compiler.start(regex(text))
    assert compiled == ["a", "b", "c", "b"]
