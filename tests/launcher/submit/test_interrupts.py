"""Ctrl-C while a run is handed over: it neither stays half made, nor goes on without a word."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.errors import EXIT_INTERRUPTED, EXIT_STOPPED, StartedError
from launchyard.host.interrupts import HeldInterrupt
from launchyard.host.processes import wait_until
from launchyard.launcher.backends.base import load_backend
from launchyard.launcher.cli.main import main
from launchyard.launcher.recipe.bundled import recipe_folder
from launchyard.launcher.runs.registry import registered
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.submit.resume import make_ready
from launchyard.run.rundir import RunDir

RECIPE = {
    "name": "tiny",
    "model": {"family": "llama", "dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32, "max_seq_len": 32},
    "tokenizer": str(recipe_folder() / "quickstart/tokenizer.json"),
    "data": {"source": "text.txt", "seq_len": 16},
    "train": {"global_batch_size": 4, "max_steps": 100_000, "device": "cpu"},
    "metrics": {"prometheus": False},
}


@pytest.fixture
def pressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C comes while the owner of a run is being started. Whatever was started is ended."""
    for kind in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("It is a truth universally acknowledged.\n\n" * 200)
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    backend = load_backend("local")
    submit = backend.submit

    def interrupted(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return submit(*args, **options)

    monkeypatch.setattr(backend, "submit", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    for entry in registered():
        run = entry.open()
        if state_of(run).alive:
            backend.cancel(run, run.job(run.attempts()[-1]))


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


@pytest.mark.usefixtures("pressed")
def test_a_run_that_is_followed_stops_as_it_would_later(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["tiny.yaml", "--run-url", "run"], ["resume", "./run"]):
        assert code_of(*words) == EXIT_STOPPED, words
        assert "saving and stopping" in capsys.readouterr().out
        assert wait_until(lambda: not state_of(RunDir("run")).alive, seconds=10)
    assert RunDir("run").attempts() == [0, 1]


@pytest.mark.usefixtures("pressed")
def test_a_run_that_is_not_followed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("tiny.yaml", "--detach", "--name", "mine") == EXIT_INTERRUPTED
    (entry,) = registered()
    error = capsys.readouterr().err
    assert f"interrupted: {entry.run_id} had been started by then; to end it: launch stop {entry.run_id}" in error
    run = entry.open()
    job = run.job(0)
    load_backend("local").cancel(run, job)
    with pytest.raises(StartedError) as caught:
        make_ready(run, {}).submit(report=print)
    assert caught.value.job == run.job(1)


def test_a_second_press_is_raised_and_other_handlers_are_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), HeldInterrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.pressed
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        told: list[int] = []
        signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
        with HeldInterrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
        assert told == [signal.SIGINT] and not interrupt.pressed
    finally:
        signal.signal(signal.SIGINT, before)
