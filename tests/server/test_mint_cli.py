"""`mint runs`, `sessions`, `checkpoints` and `status`, as people and programs use them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import mint
from mint.cli import tables
from mint.cli.main import app
from mint.cli.status import _activity
from mint.tiny import NAME

from .inprocess import ADMIN, Serve, listening, play
from .live import ALICE, BOB, LiveServer
from .sdk import SECONDS, run_of


class Command:
    """`mint` with a key, against a server."""

    def __init__(self, url: str, key: str, folder: Path) -> None:
        self.environment = {
            "MINT_BASE_URL": url,
            "MINT_API_KEY": key,
            "MINT_CREDENTIALS": str(folder / "none"),
            "COLUMNS": "80",
        }

    def run(self, *arguments: str, answer: str | None = None) -> Result:
        return CliRunner(env=self.environment).invoke(app, arguments, input=answer)

    def ok(self, *arguments: str, answer: str | None = None) -> str:
        done = self.run(*arguments, answer=answer)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def refusal(self, *arguments: str) -> str:
        """What it says when it does not do it: one line of its own."""
        done = self.run(*arguments)
        assert done.exit_code == 1, (done.output, done.exception)
        assert done.stdout == ""
        assert done.stderr.startswith("mint: ")
        return done.stderr


@pytest.fixture
def command(live: LiveServer, tmp_path: Path) -> Command:
    return Command(live.url, ALICE, tmp_path)


@pytest.fixture
def stranger(live: LiveServer, tmp_path: Path) -> Command:
    return Command(live.url, BOB, tmp_path)


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_runs(alice: mint.ServiceClient, command: Command, stranger: Command) -> None:
    older, newer = run_of(alice, rank=3), run_of(alice, rank=5)
    path = newer.save_state("step").result(SECONDS).path
    table = lines(command.ok("runs", "list", "--limit", "2"))
    assert table[0] == ["used", "rank", "base", "model", "run"]
    assert [row[1:] for row in table[1:]] == [["5", NAME, newer.model_id], ["3", NAME, older.model_id]]
    (second,) = command.json("runs", "list", "--limit", "1", "--offset", "1")["training_runs"]
    assert second["training_run_id"] == older.model_id
    rest = command.run("runs", "list", "--limit", "1").stderr
    assert rest.startswith("1 to 1 of ")
    assert rest.rstrip().endswith("more with --offset 1")
    shown = command.ok("runs", "show", newer.model_id)
    for word in (newer.model_id, NAME, path):
        assert word in shown
    assert command.json("runs", "show", newer.model_id)["last_checkpoint"]["tinker_path"] == path
    assert command.run("runs", "list", "--project", "nobody's").stderr == "none\n"
    assert "belongs to another API key" in stranger.refusal("runs", "show", newer.model_id)
    assert "does not exist" in command.refusal("runs", "show", "nobody")


def test_sessions(live: LiveServer, command: Command) -> None:
    metadata = {"purpose": "[red]test"}
    with mint.ServiceClient(base_url=live.url, api_key=ALICE, user_metadata=metadata) as service:
        run = run_of(service)
        session = run.model_id.partition(":")[0]
        table = lines(command.ok("sessions", "list", "--limit", "1"))
        assert table[0] == ["age", "state", "saved", "size", "session"]
        assert table[1][1:] == ["active", "0", "0B", session]
        shown = command.ok("sessions", "show", session)
        assert [line.split() for line in shown.splitlines()] == [
            ["session", session],
            ["metadata", "purpose=[red]test"],
            ["runs", run.model_id],
        ]
    assert command.json("sessions", "list", "--status", "active", "--limit", "200")["sessions"] is not None
    finished = command.json("sessions", "list", "--status", "finished", "--limit", "1")
    assert finished["sessions"][0]["session_id"] == session
    if finished["next_cursor"] is not None:
        later = command.json("sessions", "list", "--limit", "1", "--after", session)["sessions"]
        assert later[0]["session_id"] != session
    assert command.run("sessions", "list", "--name", "no such name").stderr == "none\n"


def test_checkpoints(alice: mint.ServiceClient, command: Command, stranger: Command) -> None:
    run = run_of(alice)
    first = run.save_state("first").result(SECONDS).path
    second = run.save_weights_for_sampler("a-name-that-is-longer-than-the-line").result(SECONDS).path
    table = lines(command.ok("checkpoints", "list", "--run", run.model_id))
    assert table[0] == ["age", "size", "checkpoint"]
    assert [row[-1] for row in table[1:]] == [second, first]
    assert command.json("checkpoints", "list", "--limit", "2")["cursor"]["limit"] == 2

    assert "expires in 12h" in command.ok("checkpoints", "ttl", first, "12h")
    assert "does not" not in command.ok("checkpoints", "publish", first)
    row = lines(command.ok("checkpoints", "list", "--run", run.model_id))
    assert row[0] == ["age", "size", "ttl", "public", "checkpoint"]
    assert row[2][2:] == ["12h", "yes", first]
    shown = command.json("checkpoints", "show", first)
    assert (shown["public"], shown["lora_rank"], shown["base_model"]) == (True, 4, NAME)
    assert "every key of the server" in stranger.ok("checkpoints", "show", first)
    command.ok("checkpoints", "unpublish", first)
    command.ok("checkpoints", "ttl", first, "never")
    shown = command.json("checkpoints", "show", first.replace("tinker://", "mint://"))
    assert (shown["public"], shown["expires_at"]) == (False, None)

    assert command.run("checkpoints", "delete", first, answer="n\n").exit_code == 1
    assert "is deleted" in command.ok("checkpoints", "delete", first, answer="y\n")
    assert "does not exist" in command.refusal("checkpoints", "delete", first, "--yes")
    assert command.ok("checkpoints", "delete", second, "-y") == f"{second} is deleted\n"
    assert command.run("checkpoints", "list", "--run", run.model_id).stderr == "none\n"


def test_what_a_checkpoint_is_for(alice: mint.ServiceClient, command: Command) -> None:
    run = run_of(alice)
    state, sampler = run.save_state("a").result(SECONDS), run.save_weights_for_sampler("a").result(SECONDS)
    external = run.save_weights_external("a").result(SECONDS)
    for saved, use in ((state, "training and sampling"), (sampler, "sampling"), (external, "download")):
        shown = dict(line.split(maxsplit=1) for line in command.ok("checkpoints", "show", saved.path).splitlines())
        assert shown["for"] == use
    assert external.path in command.ok("checkpoints", "list", "--run", run.model_id)


@pytest.mark.parametrize(
    ("words", "default"),
    [
        (("checkpoints", "list"), "$MINT_BASE_URL, $TINKER_BASE_URL,"),
        (("checkpoints", "download"), "(NAME)"),
        (("checkpoints", "merge"), "(what it is called)"),
        (("serve",), "(0.5, or one"),
    ],
)
def test_help_tells_what_is_taken_where_nothing_is_given(words: tuple[str, ...], default: str) -> None:
    assert default in CliRunner(env={"COLUMNS": "120"}).invoke(app, [*words, "--help"]).stdout


def test_what_checkpoints_refuses(alice: mint.ServiceClient, command: Command, stranger: Command) -> None:
    path = run_of(alice).save_state("first").result(SECONDS).path
    for arguments, said in (
        (("publish", "first"), "no checkpoint; it should read"),
        (("ttl", path, "soon"), "must read like 90m"),
        (("upload", "folder", "--ttl", "3600"), "--ttl must read like 90m"),
        (("ttl", path, "1m"), "ttl_seconds"),
        (("show", f"{path}-not"), "does not exist"),
    ):
        assert said in command.refusal("checkpoints", *arguments)
    for arguments in (("delete", "-y", path), ("publish", path), ("ttl", path, "never"), ("show", path)):
        assert "belongs to another API key" in stranger.refusal("checkpoints", *arguments)


def test_the_state_of_a_server(live: LiveServer, tmp_path: Path, command: Command) -> None:
    shown = command.json("status")
    assert (shown["status"], shown["base_url"]) == ("ready", live.url)
    assert [model["model_name"] for model in shown["models"]] == [NAME]
    # not an admin's key
    assert "queue" not in shown
    text = command.ok("status")
    assert "ready" in text
    assert "an admin's key" in text
    assert not [line for line in text.splitlines() if len(line) > 80]


def test_an_admin_sees_the_queue(serve: Serve, tmp_path: Path) -> None:
    async def scene() -> None:
        async with serve() as world, listening(world) as url:
            run = await world.alice.run()
            world.worker.paused = True
            await world.alice.ok("optim_step", {"model_id": run, "seq_id": 1})
            command = Command(url, ADMIN, tmp_path)
            shown = await asyncio.to_thread(command.json, "status", "--seconds", "0.1")
            assert (shown["queue"], shown["runs"], shown["sessions"]) == ({"optim_step": 1}, 1, 1)
            assert shown["tokens_per_second"]["training"] == 0
            before = {"mint_tokens_total": {"training": 100.0}}
            after = {"mint_tokens_total": {"training": 400.0, "sampled": 30.0}}
            assert _activity(before, after, 3)["tokens_per_second"] == {
                "training": 100.0,
                "prefill": 0.0,
                "cached_prefill": 0.0,
                "sampled": 10.0,
            }
            text = await asyncio.to_thread(command.ok, "status", "--seconds", "0.1")
            assert "1 optim_step" in text
            assert not [line for line in text.splitlines() if len(line) > 80]

    play(scene)


def test_where_no_server_answers(tmp_path: Path) -> None:
    nowhere = Command("http://127.0.0.1:9", ALICE, tmp_path)
    for arguments in (("runs", "list"), ("sessions", "list"), ("checkpoints", "list"), ("status",)):
        assert "no server answers at http://127.0.0.1:9" in nowhere.refusal(*arguments)
    nowhere.environment["MINT_API_KEY"] = ""
    assert "no key for http://127.0.0.1:9" in nowhere.refusal("status")
    nowhere.environment["MINT_BASE_URL"] = ""
    assert "no server runs here" in nowhere.refusal("status")
    assert "no key for http://127.0.0.1:9" in nowhere.refusal("status", "--base-url", "http://127.0.0.1:9")


def test_a_server_that_is_none_of_ours(live: LiveServer, tmp_path: Path) -> None:
    other = Command(f"{live.url}/somewhere", ALICE, tmp_path)
    assert "Not Found" in other.refusal("runs", "list")
    assert "Not Found" in other.refusal("status")
    assert "key" in Command(live.url, "sk-wrong-secret", tmp_path).refusal("runs", "list")


def test_times_and_sizes() -> None:
    def text(**ago: float) -> str:
        return (datetime.now(UTC) - timedelta(**ago)).isoformat()

    assert [tables.age(text(seconds=s)) for s in (0, 5, 90, 7300, 3 * 86400)] == ["0s", "5s", "2m", "2h", "3d"]
    assert tables.age(None) == ""
    assert (tables.moment(text(hours=-3)) or "").endswith("UTC (in 3h)")
    sizes = (0, 999, 1000, 355_800, 2_130_000, 999_600_000, 5 * 10**12)
    assert [tables.size(count) for count in sizes] == ["0B", "999B", "1.0kB", "356kB", "2.1MB", "1.0GB", "5.0TB"]
