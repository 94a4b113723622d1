"""Watching runs: what is said, exit codes, Ctrl-C on a real terminal, and the curve."""

from __future__ import annotations

import io
import os
import pty
import select
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED
from launchyard.launcher.format import duration, plain
from launchyard.launcher.report.terminal_chart import draw
from launchyard.launcher.watch.follow import follow
from tests.support.standin import Standin, kill


@pytest.mark.slow
def test_follow_a_run_to_its_end(standin: Standin) -> None:
    job = standin.submit(steps=30, save_every=10)
    out = io.StringIO()
    assert follow(standin.run, job=job, out=out) == EXIT_DONE
    text = out.getvalue()
    assert "starting workers" in text and "saved step 10 (permanent" in text
    assert "completed  30 steps" in text and "loss" in text
    assert "launch generate tiny-abcd" in text
    assert "\x1b" not in text, "plain lines when not a terminal"
    standin.submit(steps=30)
    assert follow(standin.run, out=out) == EXIT_DONE, "a run that has nothing left to do"


@pytest.mark.slow
def test_follow_a_failure(standin: Standin) -> None:
    standin.submit(faults={"0": {"error_at": 2, "fatal": True}})
    out = io.StringIO()
    assert follow(standin.run, out=out) == EXIT_FAILED
    text = out.getvalue()
    assert "failed     rank 0: RuntimeError: it broke" in text
    assert "rank-00000.log" in text and "launch why tiny-abcd" in text


@pytest.mark.slow
def test_follow_a_stop_and_say_how_to_go_on(standin: Standin) -> None:
    standin.submit()
    standin.running()
    threading.Timer(0.5, standin.run.request_stop, ["stop"]).start()
    out = io.StringIO()
    assert follow(standin.run, out=out) == EXIT_STOPPED
    assert "saved at step" in out.getvalue() and "launch resume tiny-abcd" in out.getvalue()
    standin.submit(steps=standin.run.outcome().step + 5)
    assert follow(standin.run, out=out) == EXIT_DONE
    assert "resumed from step" in out.getvalue()


@pytest.mark.slow
def test_follow_a_run_whose_owner_is_killed(standin: Standin) -> None:
    job = standin.submit()
    standin.running()
    threading.Timer(0.3, kill, [job.pid]).start()
    out = io.StringIO()
    assert follow(standin.run, job=job, out=out) == EXIT_FAILED
    assert "its owner left no outcome" in out.getvalue() and "launch resume" in out.getvalue()


@pytest.mark.parametrize(
    ("times", "code"), [(1, EXIT_STOPPED), pytest.param(2, EXIT_INTERRUPTED, marks=pytest.mark.slow)]
)
def test_ctrl_c_on_a_terminal(standin: Standin, times: int, code: int) -> None:
    standin.submit(deaf=times > 1)
    standin.running()
    command = (
        "import sys; from launchyard.launcher.watch.follow import follow; from launchyard.run.rundir import RunDir; "
    )
    command += "sys.exit(follow(RunDir(sys.argv[1])))"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-c", command, standin.run.url])
    try:
        text = read_until(terminal, "tokens/s")
        for said in ("saving and stopping", "ending it now")[:times]:
            os.write(terminal, b"\x03")
            text += read_until(terminal, said)
        text += read_until(terminal, None)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code, text
    finally:
        os.close(terminal)
    record = standin.run.outcome()
    assert record is not None and record.reason == ("stop" if times == 1 else "cancelled")
    assert "Traceback" not in text
    standin.nothing_left()


@pytest.mark.slow
def test_the_run_outlives_the_terminal_of_its_watcher(standin: Standin) -> None:
    standin.submit(steps=100)
    standin.running()
    command = (
        "import sys; from launchyard.launcher.watch.follow import follow; from launchyard.run.rundir import RunDir; "
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", f"{command}follow(RunDir(sys.argv[1]))", standin.run.url])
    read_until(terminal, "tokens/s")
    os.close(terminal)  # the terminal goes away: HUP
    os.waitpid(pid, 0)
    assert standin.outcome().outcome == "completed"


def read_until(terminal: int, words: str | None, seconds: float = 30.0) -> str:
    """What a terminal shows until some words, or (None) until its process is gone."""
    text, end = "", time.monotonic() + seconds
    while words is None or words not in text:
        assert time.monotonic() < end, text
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                assert words is None, text
                return text
    return text


# -- words and curves ------------------------------------------------------------------------------------------------
def test_duration() -> None:
    said = [duration(seconds) for seconds in (0, 59.4, 59.6, 185, 7620, 273600)]
    assert said == ["0s", "59s", "1m 00s", "3m 05s", "2h 07m", "3d 4h"]


def test_plain_text_for_a_terminal_without_unicode() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert plain("✓ saved · step 3 → 4 …", stream) == "+ saved - step 3 -> 4 ..."


points = st.lists(st.floats(-1e6, 1e6, allow_nan=False), max_size=300)


@given(points, st.integers(1, 80), st.integers(2, 20), st.booleans())
def test_a_chart_fits_its_box(values: list[float], width: int, height: int, braille: bool) -> None:
    lines = draw(list(enumerate(values)), width=width, height=height, braille=braille)
    if len(values) < 2:
        assert lines == []
        return
    assert len(lines) == height + 1
    body = [line.partition("┤" if "┤" in line else "│" if "│" in line else "|")[2] for line in lines[:-1]]
    assert all(len(line) <= width for line in body)
    assert braille or all(line.isascii() for line in lines)
    dots = [{x for line in body for x, cell in enumerate(line.ljust(width)) if cell not in " \u2800"}]
    assert dots == [set(range(width))], "every column shows the curve"


def test_a_chart_leaves_out_what_is_no_number() -> None:
    assert draw([(1, 2.0), (2, float("nan")), (3, 1.0)], width=10, height=4)
    assert draw([(1, float("inf"))], width=10, height=4) == []
