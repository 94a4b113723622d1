"""`launch status RUN --watch`: what it takes in, that it fits into a terminal, and that it ends with the run."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.report.terminal_chart import sparkline
from launchyard.launcher.watch.live import Facts, Watched, lines, watch
from launchyard.run.goodput import read_goodput
from tests.monitoring.made import Made, preempted_twice
from tests.support.standin import Standin


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def running(folder: Path) -> Made:
    made = Made(folder, clock=time.time() - 100)
    made.begin()
    made.steps(range(1, 41))
    made.save(40, "temporary")
    made.end("stopped", "preempted", 40)
    made.begin(alive=True, start=40)
    made.steps(range(41, 61))
    return made


def test_it_takes_in_each_row_once(tmp_path: Path) -> None:
    made = running(tmp_path)
    watched = Watched(made.run)
    first = watched.refresh()
    assert len(first.losses) == 60 and first.attempts == 2
    made.steps(range(61, 71))
    made.event("straggler", step=70, rank=1, ratio=1.5)
    second = watched.refresh()
    assert len(second.losses) == 70 and second.losses[:60] == first.losses
    assert [one["rank"] for one in second.out_of_line] == [1]
    made.event("straggler over", step=80, rank=1, ratio=1.0)
    assert watched.refresh().out_of_line == []


def test_its_goodput_is_that_of_the_whole_run(tmp_path: Path) -> None:
    made = running(tmp_path)
    found, told = Watched(made.run).refresh(), read_goodput(made.run)
    assert told is not None
    assert found.goodput == pytest.approx(told.seconds)
    assert sum(found.phases.values()) == pytest.approx(1.0) and "init" not in found.phases


def test_steps_done_again_replace_those_before(tmp_path: Path) -> None:
    made = running(tmp_path)
    watched = Watched(made.run)
    watched.refresh()
    made.end("failed", "killed", 60)
    made.begin(alive=True, start=40)
    made.steps(range(41, 46))
    assert len(watched.refresh().losses) == 45


@pytest.mark.parametrize("width", [40, 80, 110])
@pytest.mark.parametrize("blocks", [True, False])
def test_it_fits_into_the_terminal(tmp_path: Path, width: int, blocks: bool) -> None:
    made = running(tmp_path)
    made.event("validated", step=60, loss=3.2, seconds=0.1)
    page = lines(Watched(made.run).refresh(), width=width, blocks=blocks)
    assert all(len(line) <= width for line in page)
    assert any("step 60/1000" in line for line in page) and any("goodput" in line for line in page)
    if not blocks:
        assert "\n".join(page).replace("·", "").replace("…", "").isascii()


def test_before_anything_has_happened(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time())
    assert lines(Watched(made.run).refresh())
    made.begin(alive=True)
    page = lines(Watched(made.run).refresh())
    assert "running" in page[0] and any("nothing yet" in line for line in page)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=200), st.integers(1, 60))
def test_a_sparkline_is_as_long_as_there_is_room_or_news(values: list[float], width: int) -> None:
    drawn = sparkline(values, width=width)
    finite = [value for value in values if math.isfinite(value)]
    assert len(drawn) == min(width, len(finite))
    if len(finite) > 1 and len(finite) <= width and max(finite) > min(finite):
        assert drawn[finite.index(max(finite))] == "█" and drawn[finite.index(min(finite))] == "▁"


# -- until the end ---------------------------------------------------------------------------------------------------
def test_a_run_that_is_over_is_shown_once(tmp_path: Path) -> None:
    made, out = preempted_twice(tmp_path), io.StringIO()
    assert watch(made.run, out=out) == 0
    assert "completed" in out.getvalue() and "step 100/1000" in out.getvalue()


def test_json_is_an_object_a_line(tmp_path: Path) -> None:
    made, out = preempted_twice(tmp_path), io.StringIO()
    assert watch(made.run, as_json=True, out=out) == 0
    (found,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert found["state"] == "completed" and found["step"] == 100 and 0 < found["goodput_ratio"] < 1
    assert found["attempts"] == 3 and "losses" not in found


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_written_over_and_never_cleared(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launchyard.launcher.watch.live.REFRESH_SECONDS", {True: 0.1, False: 0.1})
    monkeypatch.setenv("TERM", "xterm-256color")
    standin.submit(steps=60, save_every=20)
    standin.running()
    out = Terminal()
    assert watch(standin.run, out=out) == 0
    said = out.getvalue()
    assert "\x1b[2J" not in said and "\x1b[H" not in said, "clearing a screen flickers"
    assert "step 60/1000" in said and said.count("\x1b[1A") > 3
    standin.outcome()


def test_ctrl_c_leaves_the_run_alone(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.submit(steps=100_000)
    standin.running()
    out = Terminal()

    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launchyard.launcher.watch.live.time.sleep", press)
    assert watch(standin.run, out=out) == 0
    monkeypatch.undo()
    before = standin.steps(0)
    standin.wait(lambda: standin.steps(0) > before)


def test_facts_of_nothing_have_no_goodput() -> None:
    state: Any = None
    assert Facts(state).goodput_ratio is None
