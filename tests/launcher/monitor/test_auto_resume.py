"""Runs that go on by themselves: which, when, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard.errors import UserError
from launchyard.launcher.monitor import auto_resume
from launchyard.launcher.monitor.auto_resume import AutoResume
from launchyard.launcher.monitor.discovery import Discovery
from launchyard.launcher.monitor.server import Monitor
from launchyard.run.rundir import RunDir
from tests.monitoring.made import Made


class Night:
    """A monitor that scans when it is told to, with everything that it resumed and reported."""

    def __init__(self, refusal: UserError | None = None) -> None:
        self.resumed = list[str]()
        self.lines = list[str]()
        self._refusal = refusal
        self._monitor = Monitor(Discovery(), on_view=[AutoResume(self._resume, self.lines.append)])

    def _resume(self, run: RunDir) -> str:
        if self._refusal is not None:
            raise self._refusal
        self.resumed.append(run.url)
        return "job-2"

    def scan(self, times: int = 1) -> None:
        for _ in range(times):
            self._monitor.refresh()


@pytest.fixture(autouse=True)
def no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(auto_resume, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("launchyard.launcher.monitor.discovery.AGAIN_SECONDS", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Made:
    made = Made(tmp_path)
    made.begin(alive=True)
    return made


def test_a_run_that_was_alive_goes_on_once_it_is_lost(run: Made) -> None:
    night = Night()
    night.scan()
    assert night.resumed == []
    run.begin(alive=False)
    night.scan()
    assert night.resumed == [run.run.url]
    assert "resumed  tiny-abcd from step 0, as job job-2" in night.lines[0]


def test_what_is_never_resumed(run: Made) -> None:
    """A run that was lost before; one that somebody asked to stop; one that has ended."""
    run.begin(alive=False)
    fresh = Night()
    fresh.scan(2)
    assert fresh.resumed == []
    run.begin(alive=True)
    night = Night()
    night.scan()
    run.run.request_stop("stop")
    run.begin(alive=False)
    night.scan(2)
    assert (night.resumed, night.lines) == ([], [])


def test_as_often_as_failures_are_allowed_and_anew_after_a_checkpoint(
    run: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night()
    night.scan()
    run.begin(alive=False)
    night.scan(6)
    assert len(night.resumed) == 3
    assert [line for line in night.lines if "not resumed" in line] == [
        "✗ not resumed  tiny-abcd: lost 3 times without a new checkpoint; by hand: launch resume tiny-abcd"
    ]
    monkeypatch.setattr("launchyard.launcher.runs.state.newest_checkpoint", lambda run: 20)
    night.scan(6)
    assert len(night.resumed) == 6
    assert "from step 20" in night.lines[-2]


def test_a_refusal_is_reported_once_and_tried_again(run: Made) -> None:
    night = Night(UserError("no Ray dashboard answers"))
    night.scan()
    run.begin(alive=False)
    night.scan(3)
    assert night.lines == ["✗ not resumed  tiny-abcd: no Ray dashboard answers; by hand: launch resume tiny-abcd"]


def test_tries_are_further_and_further_apart(run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_resume, "FIRST_WAIT_SECONDS", 1000.0)
    night = Night()
    night.scan()
    run.begin(alive=False)
    night.scan(5)
    assert len(night.resumed) == 1
    assert [auto_resume._pause(count) for count in (1, 2)] == [300, 300]
    monkeypatch.setattr(auto_resume, "FIRST_WAIT_SECONDS", 10.0)
    assert [auto_resume._pause(count) for count in (1, 2, 3, 9)] == [10, 20, 40, 300]
