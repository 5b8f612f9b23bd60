"""Samples: their log-probabilities, their reproducibility, where they stop, and what is left of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mint.engine.blocks import BlockPool
from mint.engine.core import (
    CreateRun,
    ForwardBackward,
    OptimStep,
    Passed,
    PromptQuery,
    Revision,
    Sample,
    Sampled,
    SampledSequence,
    SamplingParams,
    StopReason,
)
from mint.engine.sampling import draw, exponentials
from mint.errors import BadRequestError, MintError
from tests.engine.conftest import EngineDriver, make_driver, shape
from tests.engine.support import LARGE_STEPS, export, next_token_datum, policy_pass, trainable, trained_run

BOUND = 1e-5
"""Of log-probabilities, absolute: sampler and trainer run the same modules on batches of other shapes."""

SAME = 2e-5
"""Of the same sample in two batches; a temperature of 0.5 doubles what rounding does to the logits."""

VOCAB = 2048
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4
"""Keys and values of one token: 2 layers, 2 heads of 16 float32."""

ADAPTERS = {"a": shape(4), "b": shape(16, train_unembed=False)}


class Sampling:
    """A driver with two trained runs and their revisions."""

    def __init__(self, qwen_dir: Path, folder: Path) -> None:
        self.driver = make_driver(qwen_dir)
        self.revisions: dict[str, Revision | None] = {"base": None}
        self.driver.one(CreateRun("base", shape()))  # B is zero: it computes what the base model does
        for seed, (run, lora) in enumerate(ADAPTERS.items()):
            trained_run(self.driver, run, lora, seed)
            self.revisions[run] = export(self.driver, run, folder / run)

    def command(self, run: str, prompt: np.ndarray, num_samples: int = 1, **params: object) -> Sample:
        return Sample(
            self.revisions[run], prompt, num_samples, SamplingParams(**{"max_tokens": 8, "seed": 3, **params})
        )

    def trainer_logprobs(self, run: str, tokens: np.ndarray) -> np.ndarray:
        """Of tokens[1:], by a forward-only pass of the run."""
        command = ForwardBackward(run, (next_token_datum(tokens),), "cross_entropy", forward_only=True)
        result = self.driver.one(command)
        assert isinstance(result, Passed)
        return result.logprobs[0]


@pytest.fixture(scope="module")
def sampling(qwen_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Sampling:
    return Sampling(qwen_dir, tmp_path_factory.mktemp("revisions"))


@pytest.fixture(autouse=True)
def _nothing_leaks(sampling: Sampling) -> object:
    """Whatever a test does, the shared engine ends with all its blocks free."""
    yield
    assert_all_free(sampling.driver)


def assert_all_free(driver: EngineDriver) -> None:
    pool = driver.engine._generator._schedule.pool
    assert not driver.engine.has_work
    assert pool.num_free == pool.num_blocks
    assert sorted([*pool._empty, *pool._unheld]) == list(range(pool.num_blocks))
    assert not any(pool._holders)


def make_prompt(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, length).astype(np.int32)


def assert_same(ours: object, expected: object, bound: float = SAME) -> None:
    assert isinstance(ours, Sampled), ours
    assert isinstance(expected, Sampled), expected
    for a, b in zip(ours.sequences, expected.sequences, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=0, atol=bound)
        assert a.stop_reason == b.stop_reason
    if expected.prompt.logprobs is None:
        assert ours.prompt.logprobs is None
    else:
        np.testing.assert_allclose(ours.prompt.logprobs, expected.prompt.logprobs, rtol=0, atol=bound)


# --- log-probabilities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["base", "a", "b"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 70], ids=lambda n: f"prompt of {n}")
def test_logprobs_are_the_trainers(sampling: Sampling, run: str, length: int) -> None:
    prompt = make_prompt(length, length)
    result = sampling.driver.one(sampling.command(run, prompt, 2, max_tokens=40))
    for sequence in result.sequences:
        assert sequence.tokens.dtype == np.int32
        assert sequence.logprobs.dtype == np.float32
        assert len(sequence.tokens) == len(sequence.logprobs) == 40
        expected = sampling.trainer_logprobs(run, np.concatenate([prompt, sequence.tokens]))
        np.testing.assert_allclose(sequence.logprobs, expected[length - 1 :], rtol=0, atol=BOUND)


def test_logprobs_in_a_crowd(sampling: Sampling) -> None:
    """Many requests of different lengths, adapters and parameters at once: each as if it were alone."""
    rng = np.random.default_rng(0)
    crowd = [
        sampling.command(
            ["base", "a", "b"][i % 3],
            make_prompt(i, int(rng.integers(1, 80))),
            num_samples=int(rng.integers(1, 4)),
            max_tokens=int(rng.integers(1, 50)),
            seed=i,
            temperature=[1.0, 0.7, 0.0][i % 5 % 3],
            top_k=[-1, 5][i % 2],
            top_p=[1.0, 0.9][i % 7 % 2],
        )
        for i in range(24)
    ]
    expected = [sampling.driver.one(command) for command in crowd]
    for ours, theirs in zip(sampling.driver.together(crowd), expected, strict=True):
        assert_same(ours, theirs)
    for command, result in zip(crowd, expected, strict=True):
        if command.params.temperature == 1.0 and command.params.top_k == -1 and command.params.top_p == 1.0:
            run = next(name for name, revision in sampling.revisions.items() if revision == command.revision)
            for sequence in result.sequences:
                whole = np.concatenate([command.prompt, sequence.tokens])
                logprobs = sampling.trainer_logprobs(run, whole)[len(command.prompt) - 1 :]
                np.testing.assert_allclose(sequence.logprobs, logprobs, rtol=0, atol=BOUND)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["base", "a", "b"]),
            st.integers(1, 70),
            st.integers(1, 3),
            st.integers(1, 20),
            st.sampled_from([0.0, 0.5, 1.0]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_mixture_equals_one_by_one(sampling: Sampling, requests: list[tuple[str, int, int, int, float]]) -> None:
    commands = [
        sampling.command(run, make_prompt(length, length), n, max_tokens=max_tokens, temperature=temperature)
        for run, length, n, max_tokens, temperature in requests
    ]
    expected = [sampling.driver.one(command) for command in commands]
    for ours, theirs in zip(sampling.driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(sampling.driver)


def test_sampling_beside_training(sampling: Sampling) -> None:
    rng = np.random.default_rng(1)
    command = sampling.command("a", make_prompt(1, 20), 3, max_tokens=30)
    expected = sampling.driver.one(command)
    training = [policy_pass("base", [30, 4], "cross_entropy", rng, forward_only=True) for _ in range(10)]
    assert_same(sampling.driver.together([command, *training])[0], expected)


# --- greedy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 20, 64])
def test_greedy_is_what_transformers_generates(sampling: Sampling, qwen_dir: Path, length: int) -> None:
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    prompt = make_prompt(length, length)
    generated = base.generate(
        torch.from_numpy(prompt.astype(np.int64))[None],
        attention_mask=torch.ones(1, length, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=40,
        eos_token_id=None,
        pad_token_id=0,
    )[0, length:]
    result = sampling.driver.one(sampling.command("base", prompt, 2, max_tokens=40, temperature=0.0))
    for sequence in result.sequences:
        np.testing.assert_array_equal(sequence.tokens, generated.numpy())
        expected = sampling.trainer_logprobs("base", np.concatenate([prompt, sequence.tokens]))
        np.testing.assert_allclose(sequence.logprobs, expected[length - 1 :], rtol=0, atol=BOUND)


# --- seeds --------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_tokens_in_another_engine(sampling: Sampling, qwen_dir: Path) -> None:
    other = make_driver(qwen_dir, kv_block_size=16, max_decode_batch=2)
    command = sampling.command("a", make_prompt(5, 33), 5, max_tokens=30)
    expected = sampling.driver.one(command)
    assert_same(other.one(command), expected)
    assert_all_free(other)


def test_samples_of_one_seed_differ_and_seeds_differ(sampling: Sampling) -> None:
    prompt = make_prompt(6, 12)
    eight = sampling.driver.one(sampling.command("base", prompt, 8, max_tokens=10)).sequences
    assert len({tuple(sequence.tokens) for sequence in eight}) == 8
    other = sampling.driver.one(sampling.command("base", prompt, 8, max_tokens=10, seed=4)).sequences
    assert not {tuple(s.tokens) for s in eight} & {tuple(s.tokens) for s in other}


def test_fewer_samples_are_the_first_of_more(sampling: Sampling) -> None:
    prompt = make_prompt(7, 12)
    three = sampling.driver.one(sampling.command("base", prompt, 3))
    eight = sampling.driver.one(sampling.command("base", prompt, 8))
    assert_same(three, replace(eight, sequences=eight.sequences[:3]))


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, 2**70])
def test_any_integer_is_a_seed(sampling: Sampling, seed: int) -> None:
    command = sampling.command("base", make_prompt(8, 3), seed=seed)
    assert_same(sampling.driver.one(command), sampling.driver.one(command), 0)


def splitmix(state: int) -> int:
    """Written out again in Python's integers."""
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_noise_is_a_fixed_function() -> None:
    """A seeded sample of today must be the same in every later version."""
    seeds, samples, positions = [0, 1, -1, 2**64 - 1, 12345], [0, 1, 2, 3, 1000], [0, 5, 7, 100_000, 1]
    times = exponentials(seeds, samples, positions, 1, 3)
    for row, (seed, sample, position) in enumerate(zip(seeds, samples, positions, strict=True)):
        state = splitmix((seed + 0x9E3779B97F4A7C15 * (sample + 1)) % 2**64)
        state = splitmix((state + 0x9E3779B97F4A7C15 * (position + 1)) % 2**64)
        for lane in range(3):
            bits = splitmix((state + 0x9E3779B97F4A7C15 * (lane + 1 + 2**32)) % 2**64) >> 16
            assert times[row, lane] == np.float32(-np.log((bits + 0.5) / 2**48))


@pytest.mark.parametrize("varied", ["seed", "sample", "position"])
def test_noise_is_exponential_along_each_counter(varied: str) -> None:
    number = 1_000_000
    counters = {name: list(range(number)) if name == varied else [9] * number for name in NAMES}
    noise = np.exp(-exponentials(*(counters[name] for name in NAMES), 0, 2).astype(np.float64))
    assert (noise > 0).all()
    for lane in noise.T:
        assert_drawn_from(np.histogram(lane, bins=20, range=(0, 1))[0], np.full(20, 1 / 20))
        pairs = np.histogram2d(lane[:-1], lane[1:], bins=4, range=[(0, 1), (0, 1)])[0].ravel()
        assert_drawn_from(pairs, np.full(16, 1 / 16))
    pairs = np.histogram2d(*noise.T, bins=4, range=[(0, 1), (0, 1)])[0].ravel()
    assert_drawn_from(pairs, np.full(16, 1 / 16))


NAMES = ("seed", "sample", "position")


def assert_drawn_from(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's χ² stays below what chance exceeds once in a thousand (Wilson & Hilferty's approximation)."""
    expected = probabilities * counts.sum()
    freedom = max(1, len(counts) - 1)
    critical = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert ((counts - expected) ** 2 / expected).sum() < critical


# --- the draw -----------------------------------------------------------------------------------------------


def reference_distribution(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Log-probabilities after temperature, top_k and top_p, in float64, one token at a time."""
    scaled = logits.astype(np.float64) / params.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    ranked = sorted(range(len(logits)), key=lambda token: (-scaled[token], token))
    if params.top_k > 0:
        ranked = ranked[: params.top_k]
    total = probabilities[ranked].sum()
    kept, reached = [], 0.0
    for token in ranked:
        kept.append(token)
        reached += probabilities[token] / total
        if reached >= params.top_p:
            break
    result = np.full(len(logits), -np.inf)
    result[kept] = np.log(probabilities[kept] / probabilities[kept].sum())
    return result


FILTERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 100},
    {"top_p": 0.5},
    {"top_p": 0.0},
    {"top_p": 0.95, "temperature": 1.7},
    {"top_k": 5, "top_p": 0.6},
    {"top_k": 3, "top_p": 0.9, "temperature": 0.5},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_have_the_reference_distribution(filters: dict[str, float]) -> None:
    """All rows at once beside rows of other parameters; counts, support and log-probabilities."""
    logits = np.random.default_rng(1).normal(scale=1.5, size=12).astype(np.float32)
    params = SamplingParams(max_tokens=1, seed=0, **filters)
    number = 20_000
    neighbours = [SamplingParams(max_tokens=1, seed=0, top_k=2), SamplingParams(1, 0, temperature=0.0)]
    rows = torch.from_numpy(np.tile(logits, (number + 2, 1)))
    tokens, logprobs, _ = draw(rows.clone(), [params] * number + neighbours, range(number + 2), [0] * (number + 2))

    expected = reference_distribution(logits, params)
    assert tokens[-1] == logits.argmax()
    kept = np.isfinite(expected)
    counts = np.bincount(tokens[:number].numpy(), minlength=12)
    assert not counts[~kept].any()
    np.testing.assert_allclose(logprobs[:number].numpy(), expected[tokens[:number].numpy()], rtol=0, atol=2e-6)
    likely = np.exp(expected) * number >= 5
    probabilities = np.exp(expected)[likely]
    assert_drawn_from(counts[likely], probabilities / probabilities.sum())
    assert torch.equal(rows, torch.from_numpy(np.tile(logits, (number + 2, 1))))


def test_ties_at_the_edge_of_top_k_keep_exactly_k() -> None:
    number = 2_000
    params = SamplingParams(max_tokens=1, seed=0, top_k=3)
    tokens, logprobs, _ = draw(torch.zeros(number, 10), [params] * number, range(number), [0] * number)
    assert set(tokens.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(logprobs.numpy(), -np.log(3), atol=1e-6)


def test_filtered_samples_carry_the_renormalised_logprobs(sampling: Sampling, qwen_dir: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    prompt = make_prompt(9, 20)
    command = sampling.command("base", prompt, 3, max_tokens=12, temperature=0.8, top_k=20, top_p=0.7)
    for sequence in sampling.driver.one(command).sequences:
        whole = torch.from_numpy(np.concatenate([prompt, sequence.tokens]).astype(np.int64))
        with torch.no_grad():
            logits = base(input_ids=whole[None]).logits[0, len(prompt) - 1 : -1].numpy()
        for row, token, logprob in zip(logits, sequence.tokens, sequence.logprobs, strict=True):
            expected = reference_distribution(row, command.params)[token]
            assert logprob == pytest.approx(expected, abs=2e-5)


# --- stopping -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def natural(sampling: Sampling) -> SampledSequence:
    """A sample that nothing stops."""
    return sampling.driver.one(sampling.command("a", make_prompt(10, 9), max_tokens=30)).sequences[0]


def stopped(sampling: Sampling, **params: object) -> SampledSequence:
    command = sampling.command("a", make_prompt(10, 9), **{"max_tokens": 30, **params})
    return sampling.driver.one(command).sequences[0]


def assert_prefix(ours: SampledSequence, natural: SampledSequence, length: int, reason: StopReason) -> None:
    np.testing.assert_array_equal(ours.tokens, natural.tokens[:length])
    np.testing.assert_allclose(ours.logprobs, natural.logprobs[:length], rtol=0, atol=BOUND)
    assert ours.stop_reason == reason


@pytest.mark.parametrize("max_tokens", [1, 2, 29])
def test_max_tokens(sampling: Sampling, natural: SampledSequence, max_tokens: int) -> None:
    assert_prefix(stopped(sampling, max_tokens=max_tokens), natural, max_tokens, "length")


@pytest.mark.parametrize("place", [0, 7, 29])
def test_a_stop_token_ends_a_sample_and_is_part_of_it(sampling: Sampling, natural: SampledSequence, place: int) -> None:
    token = int(natural.tokens[place])
    first = natural.tokens.tolist().index(token)
    ours = stopped(sampling, stop_token_ids=frozenset({token, 2047}))
    assert_prefix(ours, natural, first + 1, "stop")


def test_the_last_allowed_token_may_stop(sampling: Sampling, natural: SampledSequence) -> None:
    token = int(natural.tokens[7])
    first = natural.tokens.tolist().index(token)
    ours = stopped(sampling, stop_token_ids=frozenset({token}), max_tokens=first + 1)
    assert_prefix(ours, natural, first + 1, "stop")


def test_without_stops_even_the_end_token_is_passed(sampling: Sampling) -> None:
    """What stops a sample is the request's; the engine adds nothing of the model's."""
    command = sampling.command("base", make_prompt(11, 9), 4, max_tokens=60, temperature=50.0)
    sequences = sampling.driver.one(command).sequences
    assert all(len(sequence.tokens) == 60 for sequence in sequences)


def first_hit(pieces: list[bytes], stops: tuple[bytes, ...]) -> int | None:
    """Tokens until the text first contains a stop, by the definition."""
    for length in range(1, len(pieces) + 1):
        if any(stop in b"".join(pieces[:length]) for stop in stops):
            return length
    return None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_stop_strings_across_token_borders(sampling: Sampling, natural: SampledSequence, data: st.DataObject) -> None:
    pieces = [sampling.driver.engine._generator._token_bytes[token] for token in natural.tokens]
    text = b"".join(pieces)
    start = data.draw(st.integers(0, len(text) - 2))
    stop = text[start : start + data.draw(st.integers(1, 12))]
    stops = (stop, *data.draw(st.lists(st.sampled_from([b"\xff\xfe\xfd", text[-5:], b"zzzz"]), max_size=2)))

    ours = stopped(sampling, stop_bytes=stops)

    length = first_hit(pieces, stops)
    assert length is not None
    assert_prefix(ours, natural, length, "stop")


def test_a_stop_string_spans_tokens(sampling: Sampling, natural: SampledSequence) -> None:
    """So that the property above is known to have met the case."""
    pieces = [sampling.driver.engine._generator._token_bytes[token] for token in natural.tokens]
    place = next(i for i in range(3, 25) if len(pieces[i]) > 1 and len(pieces[i + 2]) > 1)
    stop = pieces[place][-1:] + pieces[place + 1] + pieces[place + 2][:1]
    expected = first_hit(pieces, (stop,))
    assert expected == place + 3
    assert_prefix(stopped(sampling, stop_bytes=(stop,)), natural, expected, "stop")


def test_a_stop_string_that_never_comes(sampling: Sampling, natural: SampledSequence) -> None:
    assert_prefix(stopped(sampling, stop_bytes=(b"never to be seen",)), natural, 30, "length")


def test_the_prompt_is_not_searched_for_stops(sampling: Sampling, natural: SampledSequence) -> None:
    pieces = [sampling.driver.engine._generator._token_bytes[token] for token in make_prompt(10, 9)]
    stop = pieces[-1][-1:] + sampling.driver.engine._generator._token_bytes[natural.tokens[0]]
    assert_prefix(stopped(sampling, stop_bytes=(stop + b"\xff",)), natural, 30, "length")
    spanning = stopped(sampling, stop_bytes=(stop,))
    pieces_of_sample = [sampling.driver.engine._generator._token_bytes[token] for token in natural.tokens]
    assert len(spanning.tokens) == (first_hit(pieces_of_sample, (stop,)) or 30)


# --- prompt log-probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["base", "a", "b"])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_prompt_logprobs(sampling: Sampling, run: str, length: int) -> None:
    prompt = make_prompt(20 + length, length)
    command = replace(sampling.command(run, prompt, 3), query=PromptQuery(last=999))
    others = [sampling.command("a", make_prompt(21, 13)), replace(command, revision=None)]
    result, *_ = sampling.driver.together([command, *others])
    assert result.prompt.logprobs.dtype == np.float32
    assert result.prompt.logprobs.shape == (length,)
    assert np.isnan(result.prompt.logprobs[0])
    if length > 1:
        expected = sampling.trainer_logprobs(run, prompt)
        np.testing.assert_allclose(result.prompt.logprobs[1:], expected, rtol=0, atol=BOUND)
    assert sampling.driver.one(replace(command, query=PromptQuery())).prompt.logprobs is None


# --- memory -------------------------------------------------------------------------------------------------


def test_more_samples_than_the_cache_holds(sampling: Sampling, qwen_dir: Path) -> None:
    """12 blocks of 4 tokens; each request wants more for itself than is there for all its samples."""
    small = make_driver(qwen_dir, kv_cache_bytes=12 * 4 * TOKEN_BYTES, kv_block_size=4)
    assert small.engine._generator._cache.num_blocks == 12
    commands = [
        replace(sampling.command("a", make_prompt(30, 10), 9, max_tokens=9), query=PromptQuery(last=999)),
        sampling.command("base", make_prompt(31, 16), 5, max_tokens=32),
        sampling.command("b", make_prompt(32, 1), 7, max_tokens=1),
        sampling.command("base", make_prompt(33, 47), 2, max_tokens=1),
    ]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(small.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(small)


def test_few_decode_places_and_small_prefills(sampling: Sampling, qwen_dir: Path) -> None:
    narrow = make_driver(qwen_dir, max_decode_batch=3, max_batch_tokens=16)
    commands = [sampling.command("a", make_prompt(i, 5 + i), 4, max_tokens=3 + i) for i in range(6)]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(narrow.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(narrow)


@pytest.mark.parametrize("max_tokens", [48 - 10 + 1, 10_000])
def test_a_sample_that_can_never_fit_is_refused_at_once(sampling: Sampling, qwen_dir: Path, max_tokens: int) -> None:
    small = make_driver(qwen_dir, kv_cache_bytes=12 * 4 * TOKEN_BYTES, kv_block_size=4)
    fits = sampling.command("base", make_prompt(0, 10), max_tokens=38)
    refused, served = small.together([sampling.command("base", make_prompt(0, 10), max_tokens=max_tokens), fits])
    assert isinstance(refused, BadRequestError)
    assert "48" in str(refused)
    assert len(served.sequences[0].tokens) == 38
    assert_all_free(small)


@pytest.mark.parametrize("change", [{"num_samples": 0}, {"prompt": make_prompt(0, 0)}, {"max_tokens": 0}])
def test_nothing_to_sample_is_refused(sampling: Sampling, change: dict[str, object]) -> None:
    command = sampling.command("base", make_prompt(0, 32))
    if "max_tokens" in change:
        broken = replace(command, params=replace(command.params, **change))
    else:
        broken = replace(command, **change)
    refused, served = sampling.driver.together([broken, command])
    assert isinstance(refused, BadRequestError)
    assert isinstance(served, Sampled)


def test_what_lies_in_unused_blocks_does_not_matter(sampling: Sampling, qwen_dir: Path) -> None:
    """Memory is not cleared when the cache is made: it may hold anything, and 0 × NaN is NaN."""
    driver = make_driver(qwen_dir, kv_cache_bytes=400 * TOKEN_BYTES)
    driver.engine._generator._cache._memory.fill_(float("nan"))
    assert driver.engine._generator._schedule.pool.take(1) == [0]  # stays as it is, whoever reads it
    commands = [sampling.command("a", make_prompt(i, 20 + 30 * i), 2, max_tokens=40) for i in range(3)]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)


def test_a_diverged_adapter_fails_alone_and_leaves_nothing_behind(
    sampling: Sampling, qwen_dir: Path, tmp_path: Path
) -> None:
    driver = make_driver(qwen_dir, kv_cache_bytes=24 * 4 * TOKEN_BYTES, kv_block_size=4)
    trained_run(driver, "diverged", shape())
    trainable(driver, "diverged").adapter.flat.fill_(float("nan"))
    diverged = export(driver, "diverged", tmp_path / "diverged")
    healthy = [sampling.command("a", make_prompt(i, 9), 2, max_tokens=10) for i in range(3)]
    broken = replace(healthy[0], revision=diverged, num_samples=20)  # more than are admitted at once
    expected = sampling.driver.together(healthy)

    commands = [healthy[0], broken, *healthy[1:]]
    for number, command in enumerate(commands):
        assert not list(driver.engine.submit(number, command))
    answers = []
    while driver.engine.has_work:
        answers += driver.engine.step()

    assert sorted(number for number, _ in answers) == [0, 1, 2, 3], "everyone is answered once"
    first, refused, *others = (answer for _, answer in sorted(answers, key=lambda pair: pair[0]))
    assert isinstance(refused, BadRequestError)
    assert "diverged" in str(refused)
    for ours, theirs in zip([first, *others], expected, strict=True):
        assert_same(ours, theirs)
    assert_all_free(driver)
    for ours, theirs in zip(driver.together(healthy), expected, strict=True):
        assert_same(ours, theirs)


def test_revisions_that_do_not_fit_in_memory_are_read_again(sampling: Sampling, qwen_dir: Path, tmp_path: Path) -> None:
    size = max(sampling.driver.engine._trainer.run(run).adapter.flat.nbytes for run in "ab")
    driver = make_driver(qwen_dir, revision_cache_bytes=size + 1)
    commands = [sampling.command(run, make_prompt(1, 15), 2) for run in ("a", "b", "a", "base", "b")]
    expected = sampling.driver.together(commands)
    for ours, theirs in zip(driver.together(commands), expected, strict=True):
        assert_same(ours, theirs)
    assert len(driver.engine._revisions._loaded) == 1


def test_the_trainer_goes_on_from_where_sampling_found_it(sampling: Sampling, qwen_dir: Path) -> None:
    """Sampling in between passes changes no step."""
    rng = [np.random.default_rng(2), np.random.default_rng(2)]
    steps = []
    for which in range(2):
        driver = make_driver(qwen_dir)
        driver.one(CreateRun("run", shape()))
        for _ in range(2):
            driver.one(policy_pass("run", [8], "cross_entropy", rng[which]))
            if which:
                driver.one(sampling.command("base", make_prompt(0, 5)))
            driver.one(OptimStep("run", LARGE_STEPS))
        steps.append(trainable(driver, "run").adapter.flat)
    assert torch.equal(*steps)


def test_a_request_that_breaks_a_step_fails_alone(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commands = [sampling.command("a", make_prompt(i, 9 + i), 2, max_tokens=10) for i in range(4)]
    expected = sampling.driver.together(commands)
    model = sampling.driver.engine._generator._model
    compute = model.hidden_states

    def breaking(tokens: torch.Tensor, positions: torch.Tensor, *rest: object) -> torch.Tensor:
        if (tokens[positions == 5] == int(commands[2].prompt[5])).any():
            raise RuntimeError("no memory")
        return compute(tokens, positions, *rest)

    monkeypatch.setattr(model, "hidden_states", breaking)
    monkeypatch.setattr(sampling.driver.engine._generator._schedule, "pool", BlockPool(1000))  # that remembers nothing
    answers = sampling.driver.together(commands)
    assert isinstance(answers[2], MintError)
    assert "no memory" in str(answers[2])
    for place in (0, 1, 3):
        assert_same(answers[place], expected[place])
