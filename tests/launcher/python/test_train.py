"""A run inside this process: the numbers of any other run, and the same life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launchyard import Run, launch, train
from launchyard.errors import LaunchError, RecipeErrors, UserError
from launchyard.launcher.backends.local import backend
from launchyard.launcher.cli.main import main
from launchyard.run.rundir import RunDir
from tests.launcher.python.conftest import STEPS
from tests.support.small_runs import final_weights, history

Recipe = dict[str, Any]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """In processes of its own, two workers."""
    run = launch(
        recipe,
        overrides={"resources.nproc_per_node": 2},
        run_url=tmp_path_factory.mktemp("undisturbed") / "run",
    )
    assert run.wait(100).state == "completed"
    return RunDir(run.url)


def same(run: Run, other: RunDir) -> None:
    mine = RunDir(run.url)
    close = [pytest.approx(row) for row in history(other, ("step", "loss", "lr"))]
    assert history(mine, ("step", "loss", "lr")) == close
    assert history(mine, ("step", "data_hash")) == history(other, ("step", "data_hash"))


def exactly(run: Run, other: RunDir) -> None:
    mine = RunDir(run.url)
    assert history(mine) == history(other)
    expected = final_weights(other)
    assert all(tensor.equal(expected[key]) for key, tensor in final_weights(mine).items())


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """In this process, from its first step to its last."""
    return RunDir(train(recipe, run_url=tmp_path_factory.mktemp("whole") / "run").run.url)


def at(number: int, action: Callable[[], object]) -> Callable[[Row], None]:
    """An `on_step` that does something after one step."""
    return lambda row: action() if row["step"] == number else None  # type: ignore[func-returns-value]


def test_it_is_a_run_as_any_other(recipe: Recipe, undisturbed: RunDir, whole: RunDir) -> None:
    run = Run.at(whole)
    same(run, undisturbed)
    assert [row["step"] for row in run.metrics("validation")] == [4, STEPS]
    state = run.status()
    assert (state.state, state.step, state.alive) == ("completed", STEPS, False)
    assert "validating" in (whole.read_text("attempts/0000/logs/rank-00000.log"))
    assert run.model().config.dim == recipe["model"]["dim"]
    with pytest.raises(UserError, match="kind: 'rows'; there are rows of steps"):
        run.metrics("rows")


def test_killed_in_the_middle_it_goes_on_to_the_bit(recipe: Recipe, whole: RunDir, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    script = """if True:
        import json, os, signal
        from launchyard import train
        def kill(row):
            if row["step"] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        train(json.load(open("recipe.json")), run_url="run", on_step=kill)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL
    assert Run.at(RunDir("run")).status().state == "lost"
    again = train(recipe, run_url="run")
    assert (again.outcome, again.run.status().attempt) == ("completed", 1)
    exactly(again.run, whole)


def test_ctrl_c_saves_and_another_call_goes_on(recipe: Recipe, whole: RunDir) -> None:
    before = signal.getsignal(signal.SIGINT)
    stopped = train(recipe, run_url="run", on_step=at(2, lambda: signal.raise_signal(signal.SIGINT)))
    assert (stopped.outcome, stopped.step) == ("stopped", 2)
    state = stopped.run.status()
    assert (state.reason, state.checkpoint, state.resumable) == ("stop", 2, True)
    assert signal.getsignal(signal.SIGINT) is before

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(run_url="run", on_step=at(4, twice))
    assert stopped.run.status().reason == "cancelled"
    exactly(train(recipe, run_url="run").run, whole)


def test_it_does_what_the_commands_ask(recipe: Recipe, whole: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process sees it as it is, and may stop it, give it notice, or end it; this process stays."""
    seen: list[str] = []

    def look() -> None:
        with pytest.raises(SystemExit):
            main(["status", "run/", "--json"])
        seen.append(json.loads(capsys.readouterr().out)["state"])
        RunDir("run").request_stop("stop")

    stopped = train(recipe, overrides={"train.max_steps": 100_000}, run_url="run", on_step=at(2, look))
    assert seen == ["running"]
    assert stopped.run.status().reason == "stop"
    assert stopped.run.status().resumable, "another process may go on with it while this one lives"

    noticed = train(recipe, run_url="noticed", on_step=slowed(at(2, lambda: RunDir("noticed").give_notice(0, "x"))))
    assert RunDir("noticed").attempts() == [0, 1], "a preemption is followed by another attempt"
    exactly(noticed.run, whole)


def test_a_cancel_ends_the_run_and_not_this_process(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a save; and a step that lasts too long is left alone, and said."""
    refused: list[str] = []

    def cancel() -> None:
        try:
            Run.at(RunDir("run")).cancel()
        except LaunchError as error:
            refused.append(str(error))

    canceller = threading.Thread(target=cancel)
    forever = {"train.max_steps": 100_000}
    state = train(recipe, overrides=forever, run_url="run", on_step=slowed(at(2, canceller.start))).run.status()
    canceller.join()
    assert (state.state, state.reason, state.checkpoint, refused) == ("stopped", "cancelled", None, [])

    monkeypatch.setattr(backend, "CANCEL_SECONDS", 0.1)
    train(run_url="run", on_step=at(2, cancel))
    assert len(refused) == 1
    assert f"still at work inside python {os.getpid()}" in refused[0]


def slowed(on_step: Callable[[Row], None]) -> Callable[[Row], None]:
    """With time for a request to arrive after step 2."""

    def heard(row: Row) -> None:
        on_step(row)
        if row["step"] == 2 and row["attempt"] == 0:
            time.sleep(1.0)

    return heard


def test_an_error_is_on_record_and_raised(recipe: Recipe, whole: RunDir) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake in a cell")

    with pytest.raises(RuntimeError, match="a mistake in a cell"):
        train(recipe, run_url="run", on_step=at(4, fail))
    run = Run.at(RunDir("run"))
    assert run.status().state == "failed"
    assert "a mistake in a cell" in run.status().message
    with pytest.raises(LaunchError, match="failed: RuntimeError: a mistake in a cell"):
        run.wait()
    exactly(train(recipe, run_url="run").run, whole)


def test_a_complete_run_is_not_trained_again_but_may_be_longer(recipe: Recipe, whole: RunDir) -> None:
    def never(row: Row) -> None:
        raise AssertionError("it is complete")

    assert train(recipe, run_url=whole.url, on_step=never).step == STEPS
    assert train(run_url=whole.url, on_step=never).step == STEPS
    train(recipe, overrides={"train.max_steps": 2}, run_url="run")
    longer = train(recipe, overrides={"train.max_steps": 5}, run_url="run")
    assert (longer.step, len(longer.losses)) == (5, 5)


@pytest.mark.slow
def test_a_launcher_goes_on_with_it(recipe: Recipe, whole: RunDir) -> None:
    train(recipe, run_url="run", on_step=at(4, lambda: signal.raise_signal(signal.SIGINT)))
    run = Run.at(RunDir("run"))
    again = run.resume({"resources.nproc_per_node": 2})
    assert again.wait(100).step == STEPS
    same(again, whole)


def test_mistakes_leave_nothing(recipe: Recipe, whole: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RecipeErrors, match=r"model.dim: 64 in overrides, but this run was made with 32"):
        train(recipe, overrides={"model.dim": 64}, run_url=whole.url)
    with pytest.raises(UserError, match="a run trains in this process already"):
        train(recipe, run_url="run", on_step=lambda row: train(recipe, run_url="other") and None)
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="one of several ranks"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        train(recipe, run_url="other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match=r"run_url .*full: not empty"):
        launch(recipe, run_url="full")


def test_the_package_itself_is_light(tmp_path: Path) -> None:
    script = "import sys, launchyard; assert not {'torch', 'pydantic'} & set(sys.modules); launchyard.launch"
    script += "; assert 'torch' not in sys.modules; print(*launchyard.__all__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert {"build", "finetune", "launch", "load", "step", "train"} <= set(done.stdout.split())
