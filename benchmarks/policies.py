"""How fast robot policies train and act, against plain transformers with PEFT, and what kept images save.

    python -m benchmarks.policies [--only plain,images] [--rounds 5] [--models FOLDER] [--out FILE]

A random PaliGemma in the proportions of the real one: three images of 256 tokens, vision tower a fifth of the language
model. Prints a table with the aim of each figure, and one JSON object.

  plain     train_step of one run against the same step with transformers and PEFT: observations that have not been
            seen, and a group of answers to one observation
  images    train_step and act with images seen before, in front of other text, against images that are new
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np

from benchmarks.comparison import Comparison, Work
from benchmarks.in_process import InProcess
from benchmarks.suite import Bench, Cases, run_suite
from mint.engine.core import (
    AdamParams,
    Datum,
    ForwardBackward,
    Image,
    Passed,
    PlacedImage,
    Sample,
    SamplingParams,
    TrainStep,
    VisionInfo,
)
from mint.engine.policy_specs import check_policy_pass
from mint.openpi import CAMERA_LAYOUT

RANK = 16
DATUMS, GROUP, PREFIX, TARGETS = 2, 4, 32, 24
ACTS, ACTION_TOKENS = 2, 8
RUN = "policy"


def images(seed: int, vision: VisionInfo) -> tuple[PlacedImage, ...]:
    """Noise for every camera, other noise for every seed."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (len(CAMERA_LAYOUT), vision.size, vision.size, 3)).astype(np.uint8)
    size = vision.tokens_per_image
    return tuple(
        PlacedImage(place * size, size, Image(pixels, f"{seed}:{place}".encode())) for place, pixels in enumerate(noise)
    )


class Policy:
    """Requests to the policy in this process's engine; its run's weights stay as they are."""

    def __init__(self, engine: InProcess) -> None:
        assert engine.info is not None
        assert engine.info.vision is not None
        self._engine, self._info, self._vision = engine, engine.info, engine.info.vision
        self._texts = np.random.default_rng(0)

    def data(self, seeds: Sequence[int]) -> tuple[Datum, ...]:
        """A datum for each seed, which says what its images are; those of one seed have one prefix. As it is queued."""
        data = []
        for seed in seeds:
            prompt = self._prompt(np.random.default_rng(seed))
            targets = self._tokens(self._texts, TARGETS).astype(np.int64)
            inputs = {"target_tokens": targets, "token_ar_mask": np.ones(TARGETS, np.int64)}
            data.append(Datum(prompt, dict(inputs), images(seed, self._vision)))
        return check_policy_pass(ForwardBackward(RUN, tuple(data), "cross_entropy"), self._info).data

    def train_step(self, data: Sequence[Datum]) -> float:
        """The mean loss."""
        command = ForwardBackward(RUN, tuple(data), "cross_entropy", is_mean=True)
        (passed,) = self._engine.execute(TrainStep(command, AdamParams(learning_rate=0.0)))
        assert isinstance(passed, Passed)
        return passed.metrics["loss:mean"]

    def act(self, seeds: Sequence[int]) -> int:
        """Answers to observations of these images and of new text; how many tokens they have."""
        params = SamplingParams(ACTION_TOKENS, seed=0, temperature=0.0)
        return self._engine.sample(
            *(
                Sample(None, self._prompt(self._texts), 1, params, images=images(seed, self._vision), whole=True)
                for seed in seeds
            )
        )

    def _prompt(self, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        size = len(CAMERA_LAYOUT) * self._vision.tokens_per_image
        return np.concatenate([np.zeros(size, np.int32), self._tokens(rng, PREFIX)])

    def _tokens(self, rng: np.random.Generator, length: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        # the last id stands for an image
        return rng.integers(0, self._info.vocab_size - 1, length, np.int32)


def plain(bench: Bench) -> Iterator[Comparison]:
    from benchmarks.plain_policy import PlainPolicy

    policy, baseline = Policy(bench.policy), PlainPolicy(bench.policy_folder, RANK)
    bench.policy.create(RANK, RUN)
    first, group = policy.data(range(DATUMS)), policy.data([0] * GROUP)
    fresh = unseen(policy, first)
    amount = num_tokens(first)
    shape = f"{DATUMS} × (3 images + {PREFIX} + {TARGETS})"
    ours = Work(amount, lambda: policy.train_step(next(fresh)))
    yield Comparison(f"plain: {shape}", "token/s", ours, Work(amount, baseline.train_step(first)), 1.1, same_loss=True)
    amount = num_tokens(group)
    ours = Work(amount, lambda: policy.train_step(group))
    theirs = Work(amount, baseline.train_step(group))
    yield Comparison(f"plain: 1 observation, {GROUP} answers", "token/s", ours, theirs, 2.5, same_loss=True)
    bench.policy.unload(RUN)


def unseen(policy: Policy, first: tuple[Datum, ...]) -> Iterator[tuple[Datum, ...]]:
    """Batches of images that the engine has not seen, after the first."""
    yield first
    for start in count(1000, DATUMS):
        yield policy.data(range(start, start + DATUMS))


def images_kept(bench: Bench) -> Iterator[Comparison]:
    policy = Policy(bench.policy)
    bench.policy.create(RANK, RUN)
    seeds = count(1_000_000)

    def new(amount: int) -> list[int]:
        return [next(seeds) for _ in range(amount)]

    yield gain("train_step", DATUMS, lambda of: policy.train_step(policy.data(of)), new)
    yield gain("act", ACTS, policy.act, new)
    bench.policy.unload(RUN)


def gain(
    name: str, observations: int, work: Callable[[Sequence[int]], float], new: Callable[[int], list[int]]
) -> Comparison:
    """The same work on images that are known and on others each time."""
    known = new(observations)
    ours, baseline = Work(observations, lambda: work(known)), Work(observations, lambda: work(new(observations)))
    return Comparison(f"images: {name}, seen before", "observation/s", ours, baseline, 1.05)


def num_tokens(data: Sequence[Datum]) -> int:
    return sum(len(datum.tokens) for datum in data)


CASES: Cases = {"plain": plain, "images": images_kept}


if __name__ == "__main__":
    run_suite(__doc__, f"robot policies, rank {RANK}", CASES, rounds=5)
