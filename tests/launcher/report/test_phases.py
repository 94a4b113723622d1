"""`launch metrics --phases`, `launch profile`, and both in a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from launchyard.errors import UserError
from launchyard.launcher.cli.main import cli
from launchyard.launcher.report.gradients import page_gradients
from launchyard.launcher.report.history import read_story
from launchyard.launcher.report.html import report_page
from launchyard.launcher.report.phases import read_phases
from launchyard.launcher.report.profiles import next_steps
from launchyard.launcher.report.steps import read_steps
from launchyard.launcher.runs.state import state_of
from launchyard.run import layout
from launchyard.training.profile.tables import table_text
from tests.monitoring.made import Made, preempted_twice


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run_cli(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), standalone_mode=False, catch_exceptions=False)


def add_trace(made: Made, first: int, last: int, rank: int = 0) -> None:
    spent = {"calls": 4, "seconds": 0.5, "self_seconds": 0.25, "device_seconds": 0.0, "self_bytes": 0}
    summary: dict[str, Any] = {
        "first": first, "last": last, "rank": rank, "world_size": 2, "attempt": made.attempt, "host": "h", "time": 0.0,
        "phases": {"forward_backward": 0.75, "other": 0.25}, "operators": [{"name": "aten::mm", **spent}],
        "modules": [{"name": "blocks.*.<mlp>", **spent}], "memory": False, "device": False,
    }  # fmt: skip
    stem = layout.profile(first, rank)
    made.run.write_text(stem + layout.TRACE_TABLE, table_text(summary))
    made.run.write_json(stem + layout.TRACE_SUMMARY, summary)
    made.run.write_text(stem + layout.TRACE, "packed")


# -- phases ----------------------------------------------------------------------------------------------------------
def test_the_time_of_each_attempt(tmp_path: Path) -> None:
    """An attempt that ended by itself has said where all its time went; of another there are its rows."""
    made = Made(tmp_path)
    made.begin()
    made.steps(range(1, 21))
    made.begin(start=20)
    made.steps(range(21, 31))
    made.event("finished", step=30, seconds={"init": 2.0, "forward_backward": 4.0, "checkpoint_blocking": 4.0})
    killed, ended = read_phases(made.run)
    assert (killed.steps, killed.whole, killed.seconds) == (20, False, 12.0)
    assert (ended.steps, ended.whole, ended.seconds) == (10, True, 10.0)
    first = killed.phases[0]
    assert (first.phase, first.seconds, first.mean, first.p50, first.max) == ("forward_backward", 8.0, 0.4, 0.4, 0.4)
    assert first.share == pytest.approx(8 / 12, abs=1e-4)
    by_name = {one.phase: one for one in ended.phases}
    assert by_name["checkpoint_blocking"].seconds == 4.0 and by_name["checkpoint_blocking"].max == 0.0
    assert by_name["init"].mean is None, "no step has a part of it"
    assert sum(one.share for one in ended.phases) == pytest.approx(1.0, abs=1e-3)


def test_of_steps_that_differ(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.begin()
    rows = [
        {"step": n, "loss": 1.0, "attempt": 0, "time": 1.0, "phases": {"optimizer": n / 100}} for n in range(1, 101)
    ]
    made.run.write_text("metrics/steps-0000.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (found,) = read_phases(made.run)
    (one,) = found.phases
    assert (one.mean, one.p50, one.p95, one.max) == (pytest.approx(0.505), 0.5, 0.95, 1.0)


def test_ranks_are_told_apart(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.begin(workers=3)
    made.steps(range(1, 15))
    for rank, seconds in enumerate((2.0, 9.0, 5.0)):
        made.run.write_json(layout.phases(0, rank), {"rank": rank, "seconds": {"forward_backward": seconds}})
    (found,) = read_phases(made.run)
    assert found.phases[0].spread() == ((2.0, 0), (9.0, 1))
    lines = run_cli("metrics", "tiny-abcd", "--phases").output.splitlines()
    assert lines[1].split()[-4:] == ["LEAST", "RANK", "MOST", "RANK"]
    assert lines[2].split()[-4:] == ["2.00", "0", "9.00", "1"]


def test_phases_as_json(tmp_path: Path) -> None:
    made = preempted_twice(tmp_path)
    (one, *others) = json.loads(run_cli("metrics", made.run_id, "--phases", "--json").output)
    assert one["schema_version"] == 1 and len(others) == 2
    assert {"phase", "seconds", "share", "mean", "p50", "p95", "max", "ranks"} == one["phases"][0].keys()
    lines = run_cli("metrics", made.run_id, "--phases", "--jsonl").output.splitlines()
    assert [json.loads(line)["attempt"] for line in lines] == [0, 1, 2]


def test_phases_of_a_run_without_a_step(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.begin()
    assert run_cli("metrics", made.run_id, "--phases").output == "no rows yet\n"


# -- traces ----------------------------------------------------------------------------------------------------------
def test_traces_are_listed_and_the_newest_shown(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.begin(workers=2)
    assert "no traces" in run_cli("profile", made.run_id).output
    for first, rank in ((10, 0), (10, 1), (9, 0)):
        add_trace(made, first, 12, rank)
    made.run.write_text(layout.profile(99, 0) + layout.TRACE_TABLE, "its trace is not there yet")
    said = run_cli("profile", made.run_id).output
    assert [line.split()[:2] for line in said.splitlines()[1:4]] == [["9-12", "0"], ["10-12", "0"], ["10-12", "1"]]
    assert "steps 10 to 12, rank 0 of 2" in said and "aten::mm" in said
    found = json.loads(run_cli("profile", made.run_id, "--json", "--out", str(tmp_path / "out")).output)
    assert [one["first"] for one in found] == [9, 10, 10]
    assert len(list((tmp_path / "out").iterdir())) == 9
    assert Path(found[0]["trace"]).read_text() == "packed"


def test_a_live_run_is_asked(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.begin(alive=True, workers=2)
    made.steps(range(1, 41))
    said = run_cli("profile", made.run_id, "--steps", "100:102", "--ranks", "0,1", "--content", "memory", "--no-wait")
    assert "asked tiny-abcd to trace steps 100 to 102; it is at 40" in said.output
    request = made.run.read_json(layout.PROFILE_REQUEST)
    assert request.pop("time") > 0
    assert request == {
        "steps": [100, 102], "ranks": [0, 1], "memory": True, "shapes": False, "stacks": False, "attempt": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "40:41"), "is at step 40 already"),
        (("--steps", "998:1001"), "step 1001 is never made"),
        (("--steps", "100:102", "--ranks", "2"), "2 is no rank"),
        (("--steps", "102:100"), "ends at step 100"),
        (("--steps", "100:900"), "100 at most"),
        (("--steps", "soon"), "FIRST:LAST"),
        (("--steps", "100:101", "--ranks", "one"), "--ranks one"),
        (("--steps", "100:101", "--content", "flops"), "choose from memory, shapes, stacks"),
        (("--ranks", "1"), "add --steps"),
    ],
)
def test_what_cannot_be_traced_is_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    made = Made(tmp_path)
    made.begin(alive=True, workers=2)
    made.steps(range(1, 41))
    with pytest.raises(Exception, match=said):
        run_cli("profile", made.run_id, *words)
    assert not made.run.exists(layout.PROFILE_REQUEST)


def test_a_run_that_is_over_is_not_asked(tmp_path: Path) -> None:
    made = preempted_twice(tmp_path)
    with pytest.raises(UserError, match="is not running"):
        run_cli("profile", made.run_id, "--steps", "+3")


def test_the_next_steps_lie_ahead_and_within_the_run(tmp_path: Path) -> None:
    """Far enough for the request to reach the workers, at half a second a step."""
    made = Made(tmp_path)
    made.begin(alive=True)
    made.steps(range(1, 41))
    assert next_steps(made.run, state_of(made.run), 3) == (48, 50)
    made.steps(range(41, 999))
    assert next_steps(made.run, state_of(made.run), 3) == (999, 1001)


# -- in a report -----------------------------------------------------------------------------------------------------
def test_a_report_has_phases_and_the_traces_that_there_are(tmp_path: Path) -> None:
    made = preempted_twice(tmp_path)
    before = report_page(read_story(made.run))
    assert "<h2>Phases</h2>" in before and "forward_backward" in before and "<h2>Traces</h2>" not in before
    add_trace(made, 10, 12)
    page = report_page(read_story(made.run))
    assert "<h2>Traces</h2>" in page and "aten::mm" in page and "blocks.*.&lt;mlp&gt;" in page
    assert f'href="file://{made.run.path("profiles/step-0010-rank-0.json.gz")}"' in page
    assert "http" not in page, "it needs no network"


def test_a_report_prints_them_and_shows_gradients_by_part(tmp_path: Path) -> None:
    made = preempted_twice(tmp_path)
    path = tmp_path / "page.html"
    said = run_cli("report", made.run_id, "--out", str(path)).output
    assert said.startswith(run_cli("metrics", made.run_id, "--phases").output) and said.endswith("kB)\n")
    assert "Gradient norms by part" not in path.read_text()
    rows = list(made.run.rows("steps"))
    for row in rows:
        if row["step"] % 10 == 0:
            row["grad_norms"] = {f"blocks.{block}": 1.0 + block + row["step"] / 100 for block in range(9)}
            row["group_grad_norms"] = {"*norm.weight": 0.5}
    found = page_gradients(read_steps(rows).norms, [])
    assert found is not None and "in 10 steps" in found["said"] and "6 largest" in found["said"]
    assert [one for _, one in found["legend"]] == [f"blocks.{block}" for block in range(3, 9)]
    assert found["rows"][8] == ["blocks.8", "9.1", "9.55", "10", "100", "10"]
    assert found["rows"][9][0] == "group *norm.weight"
