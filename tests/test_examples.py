"""The examples, at sizes that take seconds each: every one has learned what it is for.

They run in this process, against one server: a process of its own for each would spend as long on imports.
`test_quickstart.py` goes the whole way that a user goes.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mint.cli.private_server import PrivateServer, private_server

EXAMPLES = Path(__file__).parent.parent / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_server() as running:
        yield running


@pytest.fixture
def run(server: PrivateServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as `python examples/NAME.py ARGUMENTS`; what it printed."""
    monkeypatch.setenv("MINT_BASE_URL", server.base_url)
    monkeypatch.setenv("MINT_API_KEY", server.api_key)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.setenv("COLUMNS", "160")

    def example(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return example


def before_and_after(text: str, what: str) -> tuple[float, float]:
    """The two numbers of "what 1.5 → 0.2", percentages as shares."""
    found = re.search(rf"{re.escape(what)}\s+([\d.]+)(%?) → ([\d.]+)%?", text)
    assert found, text
    scale = 100 if found[2] else 1
    return float(found[1]) / scale, float(found[3]) / scale


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests, path.name


def test_sft_on_a_file_of_conversations(run: Run) -> None:
    said = run("sft.py", "--epochs", "2")
    before, after = before_and_after(said, "held back: loss")
    assert before > 3
    assert after < 0.5
    assert re.search(r"to sample: +tinker://\S+/sampler_weights/sft", said)


def test_grpo_with_a_reward_that_can_be_checked(run: Run) -> None:
    before, after = before_and_after(run("grpo.py", "--steps", "20"), "mean reward")
    assert after > before + 0.15


def test_dpo_with_a_custom_loss(run: Run) -> None:
    before, after = before_and_after(run("dpo.py", "--steps", "12"), "preferred answer likelier:")
    assert before < 0.1
    assert after > 0.4


def test_distillation_from_a_teacher(run: Run) -> None:
    said = run("distillation.py", "--teacher-steps", "14", "--steps", "14")
    before, after = before_and_after(said, "accuracy of the student:")
    assert after > before + 0.2
    divergences = [float(number) for number in re.findall(r"KL\(student ‖ teacher\) ([\d.]+)", said)]
    assert divergences[-1] < divergences[0] / 2


def test_tool_use_over_several_turns(run: Run) -> None:
    before, after = before_and_after(run("tool_use.py"), "right answers:")
    assert after > before + 0.15


def test_a_stale_sampler_with_correction(run: Run) -> None:
    said = run("stale_sampler.py", "--steps", "20")
    before, after = before_and_after(said, "mean reward")
    assert after > before + 0.1
    kept = [int(share) for share in re.findall(r"kept +(\d+)%", said)]
    assert kept[0] == 100  # the first sampler is the run itself
    assert min(kept) < 100  # a stale one is not


def test_a_population_on_one_server(run: Run) -> None:
    said = run("population.py", "--rounds", "2")
    losses = [
        [float(loss) for loss in re.findall(r"([\d.]+) at", line)] for line in said.splitlines() if " at " in line
    ]
    first, last = losses[-2:]
    assert len(last) == 5
    assert min(last) < 1
    worst = first.index(max(first))
    assert last[worst] < first[worst] / 3  # it went on from the best one's weights
