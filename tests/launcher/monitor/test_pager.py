"""Pages without a Prometheus: what is said, that it is said once, and that it is said though the webhook was away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from launchyard.launcher.agent import notify
from launchyard.launcher.cli.main import cli
from launchyard.launcher.monitor import pager as paging
from launchyard.launcher.monitor.acknowledge import acknowledge
from launchyard.launcher.monitor.discovery import Discovery, inspect_run
from launchyard.launcher.monitor.pager import LONG_WAIT_SECONDS, LOOP_FAILURES, Pager, troubles
from launchyard.launcher.monitor.server import Monitor
from launchyard.launcher.recipe.bundled import monitoring_folder
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.runs.why import explain
from launchyard.run import layout
from tests.launcher.notify.test_notify import Webhook, hooks, webhook
from tests.monitoring.made import Made

__all__ = ["hooks", "webhook"]
URL_WITH_SECRET = "https://me:hush@store.example/run?token=hush"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(paging, "LATER_SECONDS", 0.0)
    for name in ("AGAIN_SECONDS", "PAGING_SECONDS"):
        monkeypatch.setattr(f"launchyard.launcher.monitor.discovery.{name}", 0.0)


class Night:
    """A monitor that pages, and looks when it is told to. `again`: another one is started in its place."""

    def __init__(self, webhook: Webhook) -> None:
        self.webhook, self.lines = webhook, list[str]()
        self.again()

    def again(self) -> None:
        self.pager = Pager(self.webhook.url, self.lines.append)
        self.monitor = Monitor(Discovery(), on_view=[self.pager])

    def look(self, times: int = 2) -> list[str]:
        for _ in range(times):
            self.monitor.refresh()
            self.pager.wait()
        return self.webhook.events


@pytest.fixture
def run(tmp_path: Path) -> Made:
    made = Made(tmp_path, clock=time.time() - 5 * 3600)
    made.begin(alive=True)
    made.steps(range(1, 4))
    return made


def fails(made: Made, message: str = "out of memory") -> None:
    """Its owner, this process, is gone by then."""
    job = made.run.job(made.attempt)
    made.run.write_json(layout.job(made.attempt), job.model_copy(update={"pid_started": 0.0}).model_dump())
    made.end("failed", "error", 3, of_run=True, message=message)


def resumed(made: Made) -> None:
    made.run.clear_outcome()
    made.begin(alive=True, job="8")


def test_a_failed_run_is_told_once_in_the_words_of_why(run: Made, webhook: Webhook) -> None:
    night = Night(webhook)
    assert night.look() == []
    fails(run)
    assert night.look(3) == ["failed"]
    (told,) = webhook.told
    assert told["text"] == told["content"] == explain(run.run).text and "out of memory" in told["text"]
    assert told["run_id"] == run.run_id and told["next"] == [f"launch resume {run.run_id}"] and told["attempt"] == 0
    night.again()
    assert night.look() == ["failed"], "a monitor that is started again knows"


def test_what_is_over_is_told_once_and_the_next_end_too(run: Made, webhook: Webhook) -> None:
    night = Night(webhook)
    fails(run)
    night.look()
    resumed(run)
    night.again()
    assert night.look(3) == ["failed", "mended"]
    assert webhook.told[-1]["text"] == f"{run.run_id} goes on."
    fails(run)
    assert night.look() == ["failed", "mended", "failed"] and webhook.told[-1]["attempt"] == 1


def test_a_run_whose_owner_died_is_found(run: Made, webhook: Webhook) -> None:
    night = Night(webhook)
    night.look()
    run.begin(alive=False)
    assert state_of(run.run).state == "lost" and night.look(3) == ["lost"]
    assert "its owner (process" in webhook.told[0]["text"] and "is gone" in webhook.told[0]["text"]


def test_who_knows_is_told_nothing(run: Made, webhook: Webhook) -> None:
    night = Night(webhook)
    fails(run)
    acknowledge(run.run)
    assert night.look() == []
    resumed(run)
    fails(run)
    assert night.look() == ["failed"]
    acknowledge(run.run)
    assert night.look() == ["failed"], "and not that it is over"


def test_a_webhook_that_is_away_is_told_later(run: Made, hooks: Callable[..., Webhook]) -> None:
    night = Night(hooks(*[503] * notify.TRIES))
    fails(run)
    assert night.look(1) == [] and "503" in night.lines[-1]
    assert night.look(3) == ["failed"]


def test_a_loop_is_told_while_it_goes_on(run: Made, webhook: Webhook) -> None:
    night = Night(webhook)
    for number in range(LOOP_FAILURES + 1):
        run.end("failed", "killed", 3)
        run.begin(alive=True)
        assert night.look() == ["restart loop"] * (number >= LOOP_FAILURES - 1)
    run.save(4)
    assert night.look() == ["restart loop", "mended"]


def test_silence_is_told(run: Made, webhook: Webhook) -> None:
    night = Night(webhook)
    for path in Path(run.run.url).rglob("*"):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert night.look() == ["stalled"], night.lines
    assert webhook.told[0]["text"].startswith(f"{run.run_id} has given no sign for 2h")


def test_a_long_wait_is_told(run: Made) -> None:
    seen = inspect_run(run.run)
    assert seen is not None
    waits = replace(seen, state=replace(seen.state, state="pending"), quiet=None, queue_wait=LONG_WAIT_SECONDS + 1)
    assert [one.event for one in troubles(waits)] == ["waiting"]
    assert list(troubles(replace(waits, queue_wait=LONG_WAIT_SECONDS - 1))) == []


def test_the_rules_have_the_same_limits() -> None:
    groups = yaml.safe_load((monitoring_folder() / "rules/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    assert f">= {LOOP_FAILURES}" in rules["RunRestartLoop"] and f"> {LONG_WAIT_SECONDS:.0f}" in rules["RunWaits"]


def test_no_secret_leaves(run: Made, webhook: Webhook, tmp_path: Path) -> None:
    night = Night(webhook)
    fails(run, message=f"cannot write {URL_WITH_SECRET}")
    night.look()
    assert "store.example" in webhook.told[0]["text"] and "hush" not in str(webhook.told)
    kept = "".join(path.read_text() for path in (tmp_path / "state").rglob("pages-*.json"))
    assert run.run_id in kept and webhook.url not in kept
    assert webhook.url not in "".join(night.lines)


def test_the_command_pages_by_a_variable_and_once(run: Made, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(run)
    monkeypatch.setenv("PAGES_GO_TO", webhook.url)
    for _ in range(2):
        done = CliRunner().invoke(cli, ["monitor", "--once", "--webhook", "PAGES_GO_TO"], catch_exceptions=False)
        assert done.exit_code == 0 and webhook.url not in done.output
    assert webhook.events == ["failed"]


@pytest.mark.parametrize(
    ("given", "said"), [("NOT_SET", "variable NOT_SET: is not set"), ("http://x.example/hush", "--webhook: must be")]
)
def test_a_webhook_that_is_none_is_refused_without_naming_it(given: str, said: str) -> None:
    done = CliRunner().invoke(cli, ["monitor", "--once", "--webhook", given], standalone_mode=False)
    assert said in str(done.exception) and "hush" not in str(done.exception)
