"""The account of a run's time: every second has one cause, whatever a run went through and whatever clocks say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launchyard.run.checkpoints import committed_steps
from launchyard.run.goodput import BY_PHASE, CAUSES, AttemptFacts, Ledger, account, read_goodput
from launchyard.run.records import OutcomeRecord
from launchyard.training.telemetry.phases import PHASES
from tests.support.small_runs import make_run, run_workers, start_workers, write_data


def row(step: int, at: float, **phases: float) -> dict[str, Any]:
    return {"step": step, "time": at, "step_seconds": sum(phases.values()), "phases": phases}


def outcome(kind: str, reason: str, at: float, attempt: int = 0) -> OutcomeRecord:
    return OutcomeRecord(outcome=kind, reason=reason, attempt=attempt, time=at)  # type: ignore[arg-type]


STEP = {"forward_backward": 0.8, "optimizer": 0.1, "other": 0.1}


def steps(first: int, last: int, start: float) -> list[dict[str, Any]]:
    return [row(step, start + i, **STEP) for i, step in enumerate(range(first, last + 1), start=1)]


def test_a_quiet_run() -> None:
    facts = AttemptFacts(0, 100.0, False, steps(1, 10, 105.0), None, outcome("completed", "done", 116.0))
    goodput = account([], [facts]).goodput()  # type: ignore[union-attr]
    assert goodput.wall == 16.0
    assert goodput.seconds["start"] == pytest.approx(5.0)
    assert goodput.seconds["productive"] == pytest.approx(9.0)
    assert goodput.ratio == pytest.approx(9 / 16)


def test_a_kill_costs_the_steps_done_again_and_the_time_down() -> None:
    first = AttemptFacts(0, 0.0, False, steps(1, 8, 2.0), None, outcome("failed", "killed", 15.0))
    second = AttemptFacts(1, 16.0, False, steps(6, 12, 20.0), None, outcome("completed", "done", 27.0, 1))
    goodput = account([], [first, second]).goodput()  # type: ignore[union-attr]
    assert goodput.seconds["recomputed"] == pytest.approx(3 * 0.9)  # steps 6, 7, 8
    assert goodput.seconds["productive"] == pytest.approx((8 + 4) * 0.9)
    assert goodput.seconds["down"] == pytest.approx(5.0 + 1.0)  # from its last row to the claim of the next
    assert goodput.seconds["start"] == pytest.approx(2.0 + 4.0)
    assert goodput.reached == 12
    assert sum(goodput.by_attempt[1].values()) == pytest.approx(11.0)


@pytest.mark.parametrize(
    ("reason", "kind", "backend", "sent", "causes"),
    [
        ("preempted", "stopped", "slurm", [0.0], {"queue": 20.0}),
        ("time limit", "stopped", "slurm", [0.0], {"queue": 20.0}),
        ("preempted", "stopped", "local", [], {"down": 20.0}),
        ("killed", "failed", "slurm", [0.0], {"down": 20.0}),
        ("stop", "stopped", "slurm", [0.0, 18.0], {"stopped": 8.0, "queue": 12.0}),
        ("killed", "failed", "slurm", [0.0, 18.0], {"down": 8.0, "queue": 12.0}),
        ("done", "completed", "local", [], {"stopped": 20.0}),
    ],
)
def test_what_a_run_waits_for_between_attempts(
    reason: str, kind: str, backend: str, sent: list[float], causes: dict[str, float]
) -> None:
    first = AttemptFacts(0, 0.0, backend != "local", steps(1, 8, 2.0), None, outcome(kind, reason, 10.0))
    second = AttemptFacts(1, 30.0, backend != "local", steps(9, 10, 30.0), None, None)
    seconds = account(sent, [first, second]).goodput().seconds  # type: ignore[union-attr]
    for cause in ("queue", "down", "stopped"):
        assert seconds[cause] == pytest.approx(causes.get(cause, 0.0)), cause


def test_the_last_words_of_an_attempt_are_taken_apart() -> None:
    finished = {"time": 20.0, "seconds": {**dict.fromkeys(PHASES, 0.0), "forward_backward": 1.6, "validation": 8.0}}
    rows = [row(1, 10.0, forward_backward=0.8), row(2, 11.0, forward_backward=0.8, other=0.2)]
    facts = AttemptFacts(0, 9.0, False, rows, finished, outcome("completed", "done", 20.5))
    seconds = account([], [facts]).goodput().seconds  # type: ignore[union-attr]
    assert seconds["validation"] == pytest.approx(8.0)
    assert seconds["productive"] == pytest.approx(1.6)
    assert sum(seconds.values()) == pytest.approx(11.5)


TIMES = st.floats(0, 1000, allow_nan=False)
ROWS = st.lists(
    st.tuples(
        st.integers(1, 50), TIMES, st.dictionaries(st.sampled_from(PHASES), st.floats(0, 50, allow_nan=False))
    ).map(lambda parts: row(parts[0], parts[1], **parts[2])),
    max_size=8,
)
OUTCOMES = st.none() | st.builds(
    outcome,
    st.sampled_from(["completed", "stopped", "failed"]),
    st.sampled_from(["done", "preempted", "stop", "killed", "time limit", "hung"]),
    TIMES,
)
ATTEMPTS = st.lists(
    st.builds(
        AttemptFacts,
        attempt=st.just(0),
        created=TIMES,
        scheduled=st.booleans(),
        rows=ROWS,
        finished=st.none() | TIMES.map(lambda at: {"time": at, "seconds": {"validation": 3.0, "init": 1.0}}),
        outcome=OUTCOMES,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@example([], [AttemptFacts(0, 0.0, False, [row(1, 0.0), row(1, 11.5, init=35.25)])])  # was -1e-15 by rounding
@given(st.lists(TIMES, max_size=3), ATTEMPTS)
def test_every_second_has_one_cause(submitted: list[float], attempts: list[AttemptFacts]) -> None:
    """Clocks of several machines, in any disorder: nothing is counted twice, nothing is left out."""
    goodput = account(submitted, attempts).goodput()  # type: ignore[union-attr]
    assert set(goodput.seconds) == set(CAUSES)
    assert all(seconds >= 0 for seconds in goodput.seconds.values())
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall, abs=1e-6)
    assert goodput.ratio is None or 0 <= goodput.ratio <= 1 + 1e-9


def test_a_preview_changes_nothing() -> None:
    ledger = Ledger(0.0)
    ledger.begin(0, 1.0)
    ledger.row(row(1, 3.0, forward_backward=1.0))
    seen = ledger.preview(10.0)
    assert seen.wall == 10.0 and seen.seconds["other"] == pytest.approx(7.0)
    assert ledger.goodput().wall == 3.0


def test_a_run_that_was_never_submitted_has_no_account(tmp_path: Path) -> None:
    assert read_goodput(make_run(tmp_path / "run", write_data(tmp_path / "data"))) is None


@pytest.mark.slow
def test_of_a_real_run_across_a_kill(tmp_path: Path) -> None:
    """Two workers, killed and resumed: the account is of the whole wall time, and finds the steps done again."""
    run = make_run(tmp_path / "run", write_data(tmp_path / "data"), {"train.max_steps": 40})
    began = time.time()
    processes = start_workers(run, 2, created=began)
    try:
        end = time.monotonic() + 60
        while len(list(run.rows("steps"))) < 12:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    killed = time.time()
    reached = max(row["step"] for row in run.attempt_rows("steps", 0))
    resumed = committed_steps(run)[-1]
    run_workers(run, 2, created=killed)
    goodput = read_goodput(run)
    assert goodput is not None
    assert goodput.since == began
    assert goodput.wall == pytest.approx(run.outcome(1).time - began, rel=0.01)  # type: ignore[union-attr]
    assert sum(goodput.seconds.values()) == pytest.approx(goodput.wall)
    done_again = [row["phases"] for row in run.attempt_rows("steps", 1) if row["step"] <= reached]
    assert len(done_again) == reached - resumed
    asked = sum(phases[name] for phases in done_again for name, cause in BY_PHASE.items() if cause == "productive")
    assert goodput.seconds["recomputed"] == pytest.approx(asked, rel=0.2)  # less where two clocks differ
    assert goodput.seconds["start"] > 0.2  # twice: forked workers find all imports made
    assert goodput.seconds["productive"] > 0
