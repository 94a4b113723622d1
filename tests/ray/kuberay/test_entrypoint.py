"""What a RayJob's entrypoint does with a run that is not there, is there, is over, or was stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launchyard.launcher.backends.ray.kuberay import entrypoint
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir

Begin = Callable[[], tuple[int, list[str]]]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


@pytest.fixture
def begin(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """The entrypoint to its end: its exit code, and the words of the `launch` that it has called. That fails with 7."""
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"name": "site", "scheduler": "ray"}))
    monkeypatch.setattr(entrypoint, "owner_alive", lambda run: False)

    def started() -> tuple[int, list[str]]:
        called = list[str]()
        monkeypatch.setattr(entrypoint.subprocess, "call", lambda argv: called.extend(argv) or 7)
        code = entrypoint.main(["", "recipe.yaml", str(tmp_path / "cluster.yaml"), run.url])
        return code, called[called.index("launchyard") + 1 :] if called else []

    return started


def write_end(run: RunDir, outcome: str, *, fatal: bool = False) -> None:
    run.write_json("plan.json", {})
    record = OutcomeRecord(outcome=outcome, reason="x", attempt=0, fatal=fatal, time=0.0)  # type: ignore[arg-type]
    run.write_outcome(record, of_run=True)


def test_a_run_that_is_not_there_is_launched(run: RunDir, begin: Begin) -> None:
    code, words = begin()
    assert (code, words[0], words[-1]) == (7, "recipe.yaml", "--follow")
    assert words[words.index("--run-url") + 1] == run.url


@pytest.mark.parametrize("outcome", [None, "failed"])
def test_one_that_was_lost_or_has_failed_is_resumed(outcome: str | None, run: RunDir, begin: Begin) -> None:
    run.write_json("plan.json", {})
    if outcome is not None:
        write_end(run, outcome)
    code, words = begin()
    assert code != 0 and words[:2] == ["resume", run.url]


@pytest.mark.parametrize(
    ("outcome", "fatal", "code"), [("completed", False, 0), ("stopped", False, 0), ("failed", True, 1)]
)
def test_one_that_is_over_is_left_alone(outcome: str, fatal: bool, code: int, run: RunDir, begin: Begin) -> None:
    write_end(run, outcome, fatal=fatal)
    assert begin() == (code, [])


def test_a_stop_by_its_user_is_no_failure(run: RunDir, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else KubeRay would begin again what somebody has stopped."""
    monkeypatch.setattr(entrypoint, "python_argv", lambda python: write_end(run, "stopped") or [python])
    code, words = begin()
    assert (code, words[0]) == (0, "recipe.yaml")
