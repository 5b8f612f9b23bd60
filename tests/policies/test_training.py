"""A robot policy in training: what sees what, the loss, its gradients, against the dense model and its autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mint.engine.core import AdamParams, CreateRun, Datum, ForwardBackward, OptimStep, Passed, TrainStep
from mint.engine.policy_specs import check_policy_pass
from tests.engine.conftest import EngineDriver, shape
from tests.engine.support import LARGE_STEPS, assert_same_gradients, gradients, trainable, weights
from tests.policies.support import DensePolicy, datum, one_pass

LOSSES = ("cross_entropy", "importance_sampling", "ppo")
MASKS = ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 0, 1])


def checked(driver: EngineDriver, command: ForwardBackward) -> ForwardBackward:
    return check_policy_pass(command, driver.info)


def passed(driver: EngineDriver, command: ForwardBackward) -> Passed:
    answer = driver.one(checked(driver, command))
    assert isinstance(answer, Passed)
    return answer


def trained(driver: EngineDriver, run: str = "run", seed: int = 0, rank: int = 4) -> None:
    """B starts at zero: a few large steps make both factors matter."""
    driver.one(CreateRun(run, shape(rank)))
    for step in range(2):
        driver.one(checked(driver, one_pass(run, [datum(np.random.default_rng(seed + step))])))
        driver.one(OptimStep(run, LARGE_STEPS))


def reference_loss(dense: DensePolicy, command: ForwardBackward, raw: ForwardBackward) -> torch.Tensor:
    """The loss as openpi and the table of losses write it, from the inputs as they came."""
    losses = []
    for datum_, own in zip(command.data, raw.data, strict=True):
        p = dense.logprobs(datum_)
        w = torch.from_numpy(own.loss_inputs["weights"]).double()
        if raw.loss_fn == "cross_entropy":
            losses.append(-(w * p).sum() / w.sum())
            continue
        q, a = (torch.from_numpy(own.loss_inputs[name]).double() for name in ("logprobs", "advantages"))
        r = (p - q).exp()
        terms = r * a if raw.loss_fn == "importance_sampling" else torch.minimum(r * a, r.clamp(0.8, 1.2) * a)
        losses.append(-(w * terms).sum())
    total = torch.stack(losses).sum()
    return total / len(losses) if raw.loss_fn == "cross_entropy" else total


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_loss_and_gradients_are_autograds_of_the_dense_model(
    policy: EngineDriver, policy_dir: Path, loss_fn: str
) -> None:
    """Many masks, lengths and images in one request, in micro-batches of their own."""
    trained(policy)
    rng = np.random.default_rng(5)
    data = [
        datum(rng, 3 + 4 * place, len(mask), mask=mask, pictures=(place, 9, place % 2), policy=True)
        for place, mask in enumerate(MASKS)
    ]
    raw = one_pass("run", data, loss_fn)
    command = checked(policy, raw)
    dense = DensePolicy(policy_dir, trainable(policy, "run"))
    expected = reference_loss(dense, command, raw)
    expected.backward()
    answer = passed(policy, raw)
    total = float(expected.detach()) * (len(data) if loss_fn == "cross_entropy" else 1)
    assert answer.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)
    assert answer.metrics["loss:mean"] == pytest.approx(total / len(data), rel=1e-5)
    for ours, each in zip(answer.logprobs, command.data, strict=True):
        np.testing.assert_allclose(ours, dense.logprobs(each).detach(), rtol=0, atol=1e-5)
    assert dense.flat is not None
    assert dense.flat.grad is not None
    assert_same_gradients(gradients(policy, "run").double(), dense.flat.grad, 1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_who_sees_a_target_is_what_the_mask_says(policy: EngineDriver, mask: list[int]) -> None:
    """Changing target t changes the log-probability of exactly those whose position may see it, and its own."""
    policy.one(CreateRun("run", shape()))
    base = datum(np.random.default_rng(1), mask=mask)
    before = passed(policy, one_pass("run", [base], forward_only=True)).logprobs[0]
    c = np.cumsum(np.array(mask))
    for place in range(len(mask)):
        targets = base.loss_inputs["target_tokens"].copy()
        targets[place] = (targets[place] + 1) % 512
        changed = replace(base, loss_inputs={**base.loss_inputs, "target_tokens": targets})
        after = passed(policy, one_pass("run", [changed], forward_only=True)).logprobs[0]
        # target t is predicted from the position in front of it: the prefix, block 0, or target t − 1
        at = np.concatenate([[0], c[:-1]])
        sees = (c[place] <= at) & (place < len(mask) - 1)  # the last target is no input
        sees[place] = True
        np.testing.assert_array_equal(before != after, sees)


def test_prefix_and_images_see_each_other_whole(policy: EngineDriver, policy_dir: Path) -> None:
    """A causal prefix would give other numbers, and so would other images, in any order."""
    policy.one(CreateRun("run", shape()))
    first = datum(np.random.default_rng(1))
    (whole,) = checked(policy, one_pass("run", [first])).data
    dense = DensePolicy(policy_dir, None)
    causal = replace(whole, blocks=np.arange(len(whole.tokens), dtype=np.int32))
    ours = passed(policy, one_pass("run", [first], forward_only=True)).logprobs[0]
    np.testing.assert_allclose(ours, dense.logprobs(whole).detach(), rtol=0, atol=1e-5)
    assert np.abs(ours - dense.logprobs(causal).detach().numpy()).max() > 1e-3
    for pictures in ((1, 2, 4), (3, 2, 1)):
        other = replace(first, images=datum(np.random.default_rng(1), pictures=pictures).images)
        assert np.abs(passed(policy, one_pass("run", [other])).logprobs[0] - ours).max() > 1e-3


def test_datums_of_one_observation_share_it_and_change_nothing(policy: EngineDriver) -> None:
    """A group of answers to one observation computes it once; others with the same text and other images do not."""
    trained(policy)
    base = datum(np.random.default_rng(2), prefix=12, targets=4)
    rng = np.random.default_rng(3)
    group = []
    for place in range(6):
        inputs = {**base.loss_inputs, "target_tokens": rng.integers(0, 512, 4)}
        images = base.images if place < 4 else datum(rng, pictures=(place, 2, 3)).images
        group.append(Datum(base.tokens, inputs, images))
    together = passed(policy, one_pass("run", group))
    shared = gradients(policy, "run")
    policy.one(OptimStep("run", AdamParams(learning_rate=0.0)))
    alone = [passed(policy, one_pass("run", [each])) for each in group]
    for ours, each in zip(together.logprobs, alone, strict=True):
        np.testing.assert_allclose(ours, each.logprobs[0], rtol=0, atol=1e-5)
    assert_same_gradients(shared * len(group), gradients(policy, "run"), 1e-5)
    execution = policy.engine._trainer.start([checked(policy, one_pass("run", group))])
    computed = [len(execution._prepared(part)[1].tokens) for part in execution._parts._next]
    assert computed == [3 * (24 + 3) + 3 * 3]


def test_a_train_step_is_a_pass_and_a_step_bit_for_bit(policy: EngineDriver) -> None:
    data = [datum(np.random.default_rng(seed), targets=3 + seed) for seed in range(3)]
    adam = AdamParams(learning_rate=1e-2)
    policy.one(CreateRun("one", shape()))
    policy.one(CreateRun("two", shape()))
    for _ in range(3):
        joint = policy.one(TrainStep(checked(policy, one_pass("one", data)), adam))
        first = passed(policy, one_pass("two", data))
        policy.one(OptimStep("two", adam))
        assert isinstance(joint, Passed)
        assert joint.metrics["loss:sum"] == first.metrics["loss:sum"]
    assert torch.equal(weights(policy, "one"), weights(policy, "two"))


def test_an_image_is_encoded_once(policy: EngineDriver) -> None:
    policy.one(CreateRun("run", shape()))
    encoder = policy.engine._trainer._model.images
    assert encoder is not None
    before = encoder.num_encoded
    data = [datum(np.random.default_rng(seed), pictures=(7, 7, seed % 2)) for seed in range(6)]
    passed(policy, one_pass("run", data))
    assert encoder.num_encoded - before == 3
    passed(policy, one_pass("run", data))
    assert encoder.num_encoded - before == 3


def test_runs_of_many_tenants_share_a_batch_and_nothing_else(policy: EngineDriver) -> None:
    for place, name in enumerate(("a", "b", "c")):
        trained(policy, name, seed=place, rank=2 + place)
    commands = [
        checked(policy, one_pass(name, [datum(np.random.default_rng(place), 5 + place)]))
        for place, name in enumerate(("a", "b", "c"))
    ]
    together = policy.together(commands)
    mixed = {name: gradients(policy, name) for name in ("a", "b", "c")}
    for command, answer in zip(commands, together, strict=True):
        assert isinstance(answer, Passed)
        policy.one(OptimStep(command.run_id, AdamParams(learning_rate=0.0)))
        again = policy.one(command)
        assert isinstance(again, Passed)
        np.testing.assert_allclose(answer.logprobs[0], again.logprobs[0], rtol=0, atol=1e-5)
        assert_same_gradients(mixed[command.run_id], gradients(policy, command.run_id), 1e-5)
