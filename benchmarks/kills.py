"""Programs of the `tinker` SDK, undisturbed and with a server that is killed under them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.killable import SDK_KEY, KillableServer
from mint.tiny import NAME

SFT_STEPS, RL_STEPS = 30, 8
LONGEST_PAUSE = 4.0
"""Seconds between a result after one kill and the next kill, at most."""
PATIENCE = 300.0
console = Console(stderr=True)


@dataclass(frozen=True)
class Curve:
    """What a program has seen: losses, the step counts that its optimizer steps answered, and sampled tokens."""

    losses: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)


Program = Callable[[Any, Callable[[], None]], Curve]


def sft(service: Any, progressed: Callable[[], None]) -> Curve:
    """Steps that are sent one ahead of the results."""
    from tinker import types

    run = service.create_lora_training_client(base_model=NAME, rank=8, seed=1).result(PATIENCE)
    curve, ahead = Curve(), []
    for number in range(SFT_STEPS):
        losses = run.forward_backward(_batch(number), "cross_entropy")
        ahead.append((losses, run.optim_step(types.AdamParams(learning_rate=1e-3))))
        if len(ahead) > 1 or number == SFT_STEPS - 1:
            _take(curve, *ahead.pop(0), progressed)
    for losses, stepped in ahead:
        _take(curve, losses, stepped, progressed)
    return curve


def rl(service: Any, progressed: Callable[[], None]) -> Curve:
    """Sample from the weights of the moment, train on the samples."""
    from tinker import types

    run = service.create_lora_training_client(base_model=NAME, rank=8, seed=2).result(PATIENCE)
    curve = Curve()
    for number in range(RL_STEPS):
        sampler = run.save_weights_and_get_sampling_client().result(PATIENCE)
        prompt = types.ModelInput.from_ints(_tokens(number, 16))
        params = types.SamplingParams(max_tokens=16, seed=number, stop=[])
        drawn = sampler.sample(prompt, num_samples=4, sampling_params=params).result(PATIENCE).sequences
        progressed()
        curve.samples.extend(list(each.tokens) for each in drawn)
        data = [_rollout(prompt.to_ints(), each, place) for place, each in enumerate(drawn)]
        losses = run.forward_backward(data, "importance_sampling")
        _take(curve, losses, run.optim_step(types.AdamParams(learning_rate=1e-3)), progressed)
    return curve


def _take(curve: Curve, losses: Any, stepped: Any, progressed: Callable[[], None]) -> None:
    curve.losses.append(losses.result(PATIENCE).metrics["loss:sum"])
    progressed()
    curve.steps.append(int(stepped.result(PATIENCE).metrics["step"]))
    progressed()


def _tokens(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(5, 500, count)]


def _batch(number: int) -> list[Any]:
    from tinker import types

    def datum(row: list[int]) -> Any:
        inputs: Any = {"target_tokens": row[1:]}
        return types.Datum(model_input=types.ModelInput.from_ints(row[:-1]), loss_fn_inputs=inputs)

    return [datum(_tokens(100 * number + place, 33)) for place in range(4)]


def _rollout(prompt: list[int], sequence: Any, place: int) -> Any:
    """The samples of a group have advantages of both signs."""
    from tinker import types

    tokens = prompt + list(sequence.tokens)
    zeros = [0.0] * (len(prompt) - 1)
    advantage = (-1.0) ** place
    inputs: dict[str, Any] = {
        "target_tokens": tokens[1:],
        "logprobs": zeros + [float(value) for value in sequence.logprobs],
        "advantages": zeros + [advantage] * len(sequence.tokens),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


class Watch:
    """When results come, for whoever wants to know how long after a kill that is."""

    def __init__(self) -> None:
        self._came = threading.Event()

    def progressed(self) -> None:
        self._came.set()

    def wait(self) -> float | None:
        """Seconds until the next result; None if none comes."""
        self._came.clear()
        started = time.monotonic()
        return time.monotonic() - started if self._came.wait(PATIENCE) else None


class Player(threading.Thread):
    """Plays a program again and again, until it is told to end."""

    def __init__(self, server: KillableServer, program: Program, watch: Watch) -> None:
        super().__init__(name=program.__name__)
        self.curves: list[Curve] = []
        self.errors: list[str] = []
        self.ended = threading.Event()
        self._server = server
        self._program = program
        self._watch = watch

    def run(self) -> None:
        import tinker

        while not self.ended.is_set() and not self.errors:
            try:
                with tinker.ServiceClient(base_url=self._server.url, api_key=SDK_KEY) as service:
                    self.curves.append(self._program(service, self._watch.progressed))
            except Exception as error:
                self.errors.append(f"{self.name}: {error!r}")
                console.print_exception()


def measure_kills(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill, and compare every program with the undisturbed one."""
    server = KillableServer(folder)
    try:
        server.wait_ready()
        expected = {program.__name__: _undisturbed(server, program) for program in (sft, rl)}
        watch = Watch()
        players = [Player(server, program, watch) for program in (sft, rl)]
        for player in players:
            player.start()
        times = _kill(server, watch, players, kills, random.Random(seed))
        for player in players:
            player.ended.set()
        for player in players:
            player.join()
        return _compared(players, expected, times)
    finally:
        server.stop()


def _undisturbed(server: KillableServer, program: Program) -> Curve:
    import tinker

    with (
        console.status(f"{program.__name__}, undisturbed"),
        tinker.ServiceClient(base_url=server.url, api_key=SDK_KEY) as service,
    ):
        return program(service, lambda: None)


def _kill(
    server: KillableServer, watch: Watch, players: list[Player], kills: int, chance: random.Random
) -> dict[str, list[float]]:
    """Seconds until the next result, by what was killed."""
    times: dict[str, list[float]] = {"worker": [], "server": []}
    with Progress(console=console) as progress:
        for number in progress.track(range(kills), description="kill -9"):
            time.sleep(chance.uniform(0.0, LONGEST_PAUSE))
            target = chance.choice(("worker", "server"))
            if target == "server":
                server.kill()
            else:
                while not server.kill_worker():
                    time.sleep(0.05)
            seconds = watch.wait()
            if seconds is None or any(player.errors for player in players):
                console.print(f"[red]kill {number} ({target}): no result came, or a client saw an error")
                break
            times[target].append(seconds)
    return times


def _compared(players: list[Player], expected: dict[str, Curve], times: dict[str, list[float]]) -> dict[str, Any]:
    pairs = [(curve, expected[player.name]) for player in players for curve in player.curves]
    differences = [_difference(curve.losses, due.losses) for curve, due in pairs]
    found: dict[str, Any] = {
        "kills": sum(map(len, times.values())),
        "by_target": {target: len(each) for target, each in times.items()},
        "programs": {player.name: len(player.curves) for player in players},
        "steps": sum(len(curve.steps) for curve, _ in pairs),
        "client_errors": sum(len(player.errors) for player in players),
        "lost_or_doubled_steps": sum(curve.steps != list(range(1, len(due.steps) + 1)) for curve, due in pairs),
        "largest_loss_difference": max(differences, default=0.0),
        "different_samples": sum(
            mine != theirs for curve, due in pairs for mine, theirs in zip(curve.samples, due.samples, strict=True)
        ),
        "resume_s": {target: _spread(each) for target, each in times.items()},
    }
    good = not (found["client_errors"] or found["lost_or_doubled_steps"] or found["different_samples"])
    return {**found, "all_as_undisturbed": bool(good and found["largest_loss_difference"] <= 1e-5)}


def _difference(mine: list[float], theirs: list[float]) -> float:
    """The largest relative one."""
    ours, others = np.array(mine), np.array(theirs)
    return float(np.max(np.abs(ours - others) / np.maximum(np.abs(others), 1e-12)))


def _spread(seconds: list[float]) -> dict[str, float | None]:
    if len(seconds) < 2:
        return {"p50": round(seconds[0], 2) if seconds else None, "p95": None}
    return {"p50": round(median(seconds), 2), "p95": round(quantiles(seconds, n=20)[18], 2)}
