"""Training through the official SDK against a live server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tinker

import mint
from mint import types
from mint.tiny import NAME

from .live import ALICE, LiveServer, environment
from .sdk import SECONDS, backward, batch, datum, logprobs_of, run_of, step, tokens_of, train

pytestmark = pytest.mark.filterwarnings("ignore:DEPRECATED")


def test_a_run_and_its_tokenizer(alice: mint.ServiceClient) -> None:
    run = run_of(alice, rank=8)
    info = run.get_info()
    assert info.model_data.model_name == NAME
    assert (info.is_lora, info.lora_rank) == (True, 8)
    tokenizer = run.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_losses_are_sums_of_the_logprobs_that_come_with_them(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    weights = np.linspace(-1, 1, 23).astype(np.float32).tolist()
    data = [datum(tokens_of(1)), datum(tokens_of(2), weights=weights)]
    result = backward(run, data)
    logprobs = logprobs_of(result)
    assert [len(values) for values in logprobs] == [23, 23]
    expected = -sum(logprobs[0]) - float(np.dot(logprobs[1], weights))
    assert result.metrics["loss:sum"] == pytest.approx(expected, abs=1e-3)
    forward = run.forward(data, "cross_entropy").result(SECONDS)
    np.testing.assert_allclose(logprobs_of(forward)[1], logprobs[1], atol=1e-5)


def test_step_after_step_the_loss_falls(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    losses = []
    for _ in range(6):
        losses.append(backward(run, batch(0)).metrics["loss:sum"])
        metrics = step(run, rate=1e-3)
        assert metrics["grad_norm"] > 0
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]


def test_gradients_add_up_until_the_step(alice: mint.ServiceClient) -> None:
    whole, parts = run_of(alice), run_of(alice)
    data = batch(0)
    backward(whole, data)
    for piece in data:
        backward(parts, [piece])
        parts.forward([piece], "cross_entropy").result(SECONDS)  # adds nothing
    assert step(parts)["grad_norm"] == pytest.approx(step(whole)["grad_norm"], rel=1e-4)
    np.testing.assert_allclose(
        backward(parts, batch(1)).metrics["loss:sum"], backward(whole, batch(1)).metrics["loss:sum"], rtol=1e-5
    )


def test_nothing_needs_to_be_waited_for(alice: mint.ServiceClient) -> None:
    """All operations are sent before the first result is read."""
    patient, hasty = run_of(alice), run_of(alice)
    expected = train(patient, 0, 5)
    futures = []
    for number in range(5):
        futures.append(hasty.forward_backward(batch(number), "cross_entropy"))
        hasty.optim_step(types.AdamParams(learning_rate=1e-2))
    got = [future.result(SECONDS).metrics["loss:sum"] for future in futures]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.fixture
def small_chunks(alice: mint.ServiceClient) -> Iterator[mint.ServiceClient]:
    """A client that sends three datums at most in one request, the later requests first."""
    run_of(alice)
    config = alice.holder._client_config
    alice.holder._client_config = config.model_copy(update={"fwdbwd_max_chunk_len": 3})
    yield alice
    alice.holder._client_config = config


def test_chunks_come_back_in_order(bob: mint.ServiceClient, small_chunks: mint.ServiceClient) -> None:
    data = batch(3, size=10)
    whole, cut = run_of(bob), run_of(small_chunks)
    for _ in range(2):
        expected, got = backward(whole, data), backward(cut, data)
        assert len(got.loss_fn_outputs) == 10
        for mine, theirs in zip(logprobs_of(got), logprobs_of(expected), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        assert got.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
        assert got.metrics["loss:mean"] == pytest.approx(expected.metrics["loss:mean"], rel=1e-5)
        assert step(cut)["grad_norm"] == pytest.approx(step(whole)["grad_norm"], rel=1e-4)


def test_more_datums_than_one_request_takes(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    pairs = [[5 + index % 400, 5 + index // 3 % 400] for index in range(1100)]
    outputs = logprobs_of(run.forward([datum(pair) for pair in pairs], "cross_entropy").result(SECONDS))
    assert [len(output) for output in outputs] == [1] * 1100
    alone = logprobs_of(run.forward([datum(pairs[1099])], "cross_entropy").result(SECONDS))
    assert outputs[1099] == pytest.approx(alone[0], abs=1e-5)


def test_policy_losses(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    tokens = tokens_of(1)
    (old,) = logprobs_of(run.forward([datum(tokens)], "cross_entropy").result(SECONDS))
    advantages = np.linspace(-1, 1, 23).astype(np.float32).tolist()
    policy = datum(tokens, logprobs=old, advantages=advantages)
    for loss in ("importance_sampling", "ppo"):
        result = backward(run, [policy], loss)
        assert result.metrics["loss:sum"] == pytest.approx(-sum(advantages), abs=1e-4)
        np.testing.assert_allclose(logprobs_of(result)[0], old, atol=1e-5)


def test_a_custom_loss_is_its_gradient(alice: mint.ServiceClient) -> None:
    """Minus the weighted sum of log-probabilities is cross_entropy, whoever computes it."""
    import torch

    def negative_sum(_data: object, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return -sum(values.sum() for values in logprobs), {"mine": 1.0}

    custom, plain = run_of(alice), run_of(alice)
    result = custom.forward_backward_custom(batch(0), negative_sum).result(SECONDS)
    assert result.metrics["mine"] == 1.0
    backward(plain, batch(0))
    assert step(custom)["grad_norm"] == pytest.approx(step(plain)["grad_norm"], rel=1e-4)


def test_tenants_side_by_side_do_not_notice_each_other(alice: mint.ServiceClient, bob: mint.ServiceClient) -> None:
    expected = train(run_of(alice), 0, 6)
    params = types.SamplingParams(max_tokens=20, seed=1, stop=[])
    prompt = types.ModelInput.from_ints(tokens_of(1))

    def work(service: mint.ServiceClient) -> tuple[list[float], list[list[int]]]:
        sampler = service.create_sampling_client(base_model=NAME).result(SECONDS)
        samples = [sampler.sample(prompt, num_samples=2, sampling_params=params) for _ in range(4)]
        curve = train(run_of(service), 0, 6)
        return curve, [list(s.tokens) for sample in samples for s in sample.result(SECONDS).sequences]

    with ThreadPoolExecutor() as threads:
        outcomes = list(threads.map(work, [alice, bob, alice, bob]))
    for curve, texts in outcomes:
        np.testing.assert_allclose(curve, expected, rtol=1e-5)
        assert texts == outcomes[0][1]


# ---------------------------------------------------------------- save and load


def test_a_load_is_as_if_nothing_had_been(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    train(run, 0, 3)
    path = run.save_state("three").result(SECONDS).path
    assert path.startswith("tinker://")
    undisturbed = train(run, 3, 3)

    run.load_state_with_optimizer(path).result(SECONDS)
    np.testing.assert_allclose(train(run, 3, 3), undisturbed, rtol=1e-5)
    other = alice.create_training_client_from_state_with_optimizer(path).result(SECONDS)
    np.testing.assert_allclose(train(other, 3, 3), undisturbed, rtol=1e-5)


def test_without_the_optimizer_only_weights_are_loaded(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    train(run, 0, 3)
    path = run.save_state("three").result(SECONDS).path
    undisturbed = train(run, 3, 3)
    run.load_state(path).result(SECONDS)
    fresh = alice.create_training_client_from_state(path).result(SECONDS)
    mine, theirs = train(run, 3, 3), train(fresh, 3, 3)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert mine[0] == pytest.approx(undisturbed[0], rel=1e-5)
    assert mine[2] != pytest.approx(undisturbed[2], rel=1e-5)


def test_a_load_discards_gradients(alice: mint.ServiceClient) -> None:
    run = run_of(alice)
    path = run.save_state("start").result(SECONDS).path
    expected = train(run, 0, 2)
    backward(run, batch(9))
    run.load_state_with_optimizer(path).result(SECONDS)
    np.testing.assert_allclose(train(run, 0, 2), expected, rtol=1e-5)


# ---------------------------------------------------------------- what goes wrong


def test_refusals_reach_the_user_and_the_client_goes_on(alice: mint.ServiceClient, bob: mint.ServiceClient) -> None:
    run, bystander = run_of(alice), run_of(bob)
    good = batch(0)
    nan = datum([5, 6, 7], logprobs=[-1.0, -1.0], advantages=[1.0, float("nan")])
    for bad, loss, named in (
        ([*good, datum([5, 100_000, 7])], "cross_entropy", r"data\[4\].model_input"),
        ([*good, datum(list(range(5, 5 + 2050)))], "cross_entropy", r"data\[4\].model_input"),
        ([*good, datum([5, 6], weights=[1.0, 1.0])], "cross_entropy", r"data\[4\].loss_fn_inputs.weights"),
        ([nan], "importance_sampling", r"data\[0\].loss_fn_inputs.advantages"),
        (good, "stable_reinforce", "loss_fn"),
    ):
        with pytest.raises(tinker.BadRequestError, match=named):
            backward(run, bad, loss)
    assert backward(run, good).metrics["loss:sum"] == pytest.approx(backward(bystander, good).metrics["loss:sum"])
    assert step(run)["grad_norm"] == pytest.approx(step(bystander)["grad_norm"], rel=1e-5)
    run.save_state("a").result(SECONDS)
    with pytest.raises(tinker.BadRequestError, match="path"):
        run.save_state("a").result(SECONDS)
    with pytest.raises(tinker.NotFoundError, match="path"):
        run.load_state("tinker://nobody:train:0/weights/a").result(SECONDS)
    with pytest.raises(tinker.PermissionDeniedError, match="path"):
        bob.create_training_client_from_state(run.save_state("b").result(SECONDS).path).result(SECONDS)
    step(run)


def test_an_unknown_model_is_answered_with_the_known_ones(alice: mint.ServiceClient) -> None:
    for refused in (
        lambda: alice.create_lora_training_client("nobody/nothing"),
        lambda: alice.create_sampling_client(base_model="nobody/nothing"),
    ):
        with pytest.raises(tinker.BadRequestError, match=NAME):
            refused().result(SECONDS)


def test_a_finished_session_is_over(live: LiveServer) -> None:
    service = mint.ServiceClient(base_url=live.url, api_key=ALICE)
    run = run_of(service)
    session = service.holder.get_session_id()
    service.close("success", detail="done").result(SECONDS)
    assert live.post("session_heartbeat", {"session_id": session}).status_code == 410
    response = live.post("optim_step", {"model_id": run.model_id, "seq_id": 1})
    assert response.status_code == 410


def test_keys_that_are_given_are_kept_to_oneself(live: LiveServer) -> None:
    assert "one of the keys you gave" in live.output
    assert "secret" not in live.output
    assert not (live.folder / "credentials.json").exists()


def test_a_wrong_key_is_told_at_once(live: LiveServer) -> None:
    for key, error in (("sk-wrong-secret", tinker.AuthenticationError), ("wrong", tinker.TinkerError)):
        with pytest.raises(error):
            mint.RestClient(base_url=live.url, api_key=key).get_server_capabilities().result(SECONDS)


PROGRAM = """
import sys
sys.modules["torch"] = None  # the SDK starts faster without
import {module} as tinker
models = tinker.RestClient().get_server_capabilities().result(30).supported_models
names = [model.model_name for model in models]
client = tinker.ServiceClient().create_sampling_client(base_model=names[0]).result(30)
prompt = tinker.ModelInput.from_ints([5, 6])
sample = client.sample(prompt, num_samples=1, sampling_params=tinker.SamplingParams(max_tokens=2)).result(30)
print(names[0], len(sample.sequences))
"""


@pytest.mark.parametrize(("module", "prefix"), [("mint", "sk"), ("tinker", "tml")])
def test_whose_program_it_is(live: LiveServer, module: str, prefix: str) -> None:
    """A plain `import tinker` needs nothing of ours; `import mint as tinker` takes our form of a key."""
    names = ("TINKER_BASE_URL", "TINKER_API_KEY") if module == "tinker" else ("MINT_BASE_URL", "MINT_API_KEY")
    values = dict(zip(names, (live.url, f"{prefix}-alice-secret"), strict=True))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        env=environment(live.folder, **values),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert result.stdout.split() == [NAME, "1"], result.stderr
