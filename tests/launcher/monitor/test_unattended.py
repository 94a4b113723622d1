"""Ends that page until somebody acts, counters that never fall, and silence that is measured by one clock."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from launchyard.errors import UserError
from launchyard.launcher.cli.main import cli
from launchyard.launcher.monitor import discovery
from launchyard.launcher.monitor.acknowledge import acknowledge
from launchyard.launcher.monitor.discovery import Discovery, inspect_run
from launchyard.launcher.monitor.quiet import LATE_STEP_SECONDS, SLACK_SECONDS, TIMES_STEP, Quiet
from launchyard.launcher.monitor.server import Monitor, exposition
from launchyard.launcher.monitor.tally import Tally
from launchyard.run import layout
from launchyard.run.records import OutcomeRecord
from tests.monitoring.made import STEP, Made

SLOW = 3 * 900 + SLACK_SECONDS  # as long as its workers may wait for a store


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def failed(folder: Path, *, ago: float = 5 * 3600.0) -> Made:
    made = Made(folder, clock=time.time() - ago)
    made.begin()
    made.end("failed", "error", 3, of_run=True, message="out of memory")
    return made


def series(monitor: Monitor, name: str) -> dict[str, float]:
    """Of one run, by the last of its labels."""
    found = {}
    for family in text_string_to_metric_families(exposition(monitor.refresh())):
        for sample in family.samples:
            if sample.name == name:
                found[list(sample.labels.values())[-1]] = sample.value
    return found


# -- ends ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["failed", "lost"])
def test_an_end_is_shown_until_somebody_knows(tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, clock=time.time() - 5 * 3600)
    made.begin()
    if state == "failed":
        made.end("failed", "error", 3, of_run=True)
    monitor = Monitor(Discovery())
    assert series(monitor, "launcher_run_state")[state] == 1
    assert series(monitor, "launcher_run_acknowledged") == {made.run_id: 0}
    acknowledge(made.run, note="the disk of node7 is full")
    monkeypatch.setattr(discovery, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(discovery, "PAGING_SECONDS", 0.0)
    assert series(Monitor(Discovery()), "launcher_run_acknowledged") == {made.run_id: 1}, "for every monitor"
    found = Discovery()
    assert [seen.needs_somebody for seen in found.scan()] == [False]
    monkeypatch.setattr(discovery, "SHOWN_SECONDS", 0.0)
    assert found.scan() == []


def test_an_acknowledgement_is_seen_by_the_monitor_that_runs(tmp_path: Path) -> None:
    made, monitor = failed(tmp_path), Monitor(Discovery())
    assert series(monitor, "launcher_run_acknowledged") == {made.run_id: 0}
    acknowledge(made.run)
    assert series(monitor, "launcher_run_acknowledged") == {made.run_id: 1}


def test_another_end_pages_again(tmp_path: Path) -> None:
    made = failed(tmp_path)
    acknowledge(made.run)
    made.run.clear_outcome()
    made.begin(alive=True)
    (seen,) = Discovery().scan()
    assert not seen.needs_somebody and seen.acknowledged is None
    made.end("failed", "error", 4, of_run=True)
    (seen,) = Discovery().scan()
    assert seen.needs_somebody


def test_a_live_run_has_no_end_to_know(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time())
    made.begin(alive=True)
    with pytest.raises(UserError, match="tiny-abcd is running: only a run that has failed"):
        acknowledge(made.run)


def test_the_command(tmp_path: Path) -> None:
    made = failed(tmp_path)

    def ack(*words: str) -> str:
        done = CliRunner().invoke(cli, ["ack", *words], catch_exceptions=False, standalone_mode=False)
        return done.output

    (record,) = json.loads(ack(made.run_id, "--note", "see https://me:word@host/x", "--json"))
    assert record["state"] == "failed" and record["note"] == "see https://***@host/x" and "@" in record["by"]
    assert ack("--all") == "no run pages\n"
    made.run.clear_outcome()
    made.begin()
    made.end("failed", "error", 4, of_run=True)
    assert "attempt 1 failed" in ack("--all")
    assert Discovery().scan()[0].acknowledged


# -- failures in a row -----------------------------------------------------------------------------------------------
def test_failures_are_counted_by_the_rule_of_the_owner(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time() - 600)

    def failures() -> int:
        seen = inspect_run(made.run)
        assert seen is not None
        return seen.failures

    for number in (1, 2, 3):
        made.begin()
        made.end("failed", "killed", 1)
        assert failures() == number
    made.begin(alive=True)
    assert failures() == 3, "its next attempt has not saved yet"
    made.steps(range(1, 3))
    made.save(2)
    assert failures() == 0
    made.end("failed", "killed", 3)
    assert failures() == 0, "it got on before it failed"
    made.begin(job="8", alive=True)
    made.end("failed", "killed", 3)
    assert failures() == 1
    made.begin(job="9", alive=True)
    assert failures() == 0, "somebody has resumed it"


# -- counters --------------------------------------------------------------------------------------------------------
ENDS = [("completed", "done"), ("stopped", "preempted"), ("failed", "killed"), ("failed", "hung"), ("late", "killed")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["begin", "restart", *range(len(ENDS))]), max_size=10))
def test_counters_never_fall(tmp_path: Path, script: list[str | int]) -> None:
    """Through ends, attempts without a word, words that come late, resumes, and monitors that are started again."""
    name = f"run-{time.monotonic_ns()}"
    (tmp_path / name).mkdir()
    made, tally = Made(tmp_path / name, name, clock=time.time() - 600), Tally()
    before: dict[str, int] = {}
    for act in script:
        without = [one for one in range(made.attempt + 1) if made.run.outcome(one) is None]
        if act == "begin":
            made.begin()
        elif act == "restart":
            tally = Tally()
        elif without:
            outcome, reason = ENDS[int(act)]
            attempt = without[0] if outcome == "late" else without[-1]
            record = OutcomeRecord(
                outcome="failed" if outcome == "late" else outcome,  # type: ignore[arg-type]
                reason=reason, attempt=attempt, step=1, time=time.time(),
            )  # fmt: skip
            made.run.write_outcome(record)
        counts = tally.count(made.run, made.run.attempts())
        assert all(counts.get(result, 0) >= number for result, number in before.items()), (before, counts)
        assert sum(counts.values()) <= made.attempt + 1
        before = counts


# -- silence ---------------------------------------------------------------------------------------------------------
def age_all(made: Made, seconds: float) -> None:
    """Every file of it was written so long ago, by the clock of its disk."""
    for path in Path(made.run.url).rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds, time.time() - seconds))


def quiet(made: Made) -> Quiet:
    seen = inspect_run(made.run)
    assert seen is not None and seen.quiet is not None
    return seen.quiet


@pytest.mark.parametrize("skew", [-300.0, 0.0, 3600.0])
def test_the_clock_of_a_node_does_not_matter(tmp_path: Path, skew: float) -> None:
    made = Made(tmp_path, clock=time.time() + skew)
    made.begin(alive=True)
    made.steps(range(1, 20))
    assert quiet(made).seconds < 5
    age_all(made, 500)
    assert 499 < quiet(made).seconds < 505
    made.steps(range(20, 21))
    assert quiet(made).seconds < 5


def test_how_long_it_may_be_silent(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time())
    made.run.write_json(layout.PLAN, {**made.run.read_plan(), "batch": {"tokens_per_step": 64}})
    made.begin(alive=True, start=None)
    age_all(made, 100)
    assert quiet(made).limit == SLOW and 99.9 < quiet(made).seconds < 105, "it starts"
    made.event("started", step=0, resumed=False)
    assert quiet(made).limit == SLOW, "its first step may compile"
    made.steps(range(1, 20))
    assert quiet(made).limit == pytest.approx(LATE_STEP_SECONDS + TIMES_STEP * STEP), "it trains"
    made.event("validating", step=19)
    assert quiet(made).limit == SLOW
    made.event("validated", step=19, loss=2.0, seconds=1.0)
    assert quiet(made).limit == SLOW, "there may be another set"
    made.steps(range(20, 22))
    assert quiet(made).limit < SLOW
    made.event("stopping", step=21, reason="stop")
    assert quiet(made).limit == SLOW, "it saves"


def test_a_run_that_does_not_run_is_not_silent(tmp_path: Path) -> None:
    made = failed(tmp_path)
    assert inspect_run(made.run).quiet is None  # type: ignore[union-attr]
    assert "launcher_run_quiet_seconds{" not in exposition(Monitor(Discovery()).refresh())
