"""Real runs that fail, are lost, loop or hang: a real Prometheus and a webhook page, until all is well again.

Every case has its counter-case in the same run: before the fault, and after its end. Minutes are seconds here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launcher.notify.test_notify import Webhook
from tests.monitoring.prometheus import FAST, Watching, watching
from tests.monitoring.test_live import RECIPE, Live
from tests.s3.runs import write_data

pytestmark = [pytest.mark.monitoring, pytest.mark.timeout(560)]

# A file of this name beside the code: what happens while it is there.
OWN = """
import os, pathlib, signal, time
HERE = pathlib.Path({here!r})

def _hang(name):
    while (HERE / name).exists():
        time.sleep(0.1)

if "LOCAL_RANK" in os.environ:
    _hang("hang-start")

def on_step(row):
    if row.step >= 3 and (HERE / "die").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if row.step >= 3 and (HERE / "fail").exists():
        raise RuntimeError("the disk of node7 is full")
    time.sleep(0.02)

def on_validation(row):
    _hang("hang-validation")

def on_end(run):
    _hang("hang-end")
"""
# Two minutes and more are 14 s for all that a run may do: its watchdog has to be slower, and is off.
PATIENT = {**FAST, "> 1 * max": "> 0.005 * max"}


@dataclass
class Night:
    live: Live
    prometheus: Watching
    webhook: Webhook

    def switch(self, name: str, on: bool) -> None:
        path = self.live.shell.here / name
        if on:
            path.touch()
        else:
            path.unlink()

    def pages(self, alert: str, seconds: float = 90.0) -> None:
        self.prometheus.wait(lambda: alert in self.prometheus.firing(), seconds)

    def is_silent(self, seconds: float = 60.0) -> None:
        """Within a minute."""
        self.prometheus.wait(lambda: self.prometheus.firing() <= {"Watchdog"}, seconds)

    def told(self, *events: str) -> None:
        self.prometheus.wait(lambda: self.webhook.events == list(events), 60)

    def trains(self, attempt: int, steps: int = 5) -> None:
        self.live.wait(lambda: len(self.live.rows(attempt)) > steps, 240)

    def resume(self, *words: str) -> None:
        done = self.live.shell("resume", self.live.run.url, "--detach", *words, timeout=240)
        assert done.returncode == 0, done.stderr


@contextmanager
def a_night(root: Path, prometheus: str, *switches: str, **recipe: Any) -> Iterator[Night]:
    data = write_data(str(root / "data"))
    place = {**RECIPE["data"], "source": data.train[0].folder, "validation": data.validation[0].folder}
    own = {"code": "own.py", "resources": {"nproc_per_node": 1, "max_failures": 6}}
    recipe = {"watchdog": {"enabled": False, "step_seconds": 2700.0}, **own, **recipe}
    live = Live(root / "user", data=place, **recipe)
    (live.shell.here / "own.py").write_text(OWN.format(here=str(live.shell.here)))
    webhook = Webhook()
    try:
        with watching(root / "prometheus", prometheus, live.shell.env, fast=PATIENT, webhook=webhook.url) as found:
            night = Night(live, found, webhook)
            for name in switches:
                night.switch(name, on=True)
            live.launch()
            yield night
    finally:
        for path in live.shell.here.glob("hang-*"):
            path.unlink()
        live.close()
        webhook.close()


def test_a_run_that_fails_pages_until_somebody_knows_or_it_goes_on(tmp_path: Path, prometheus: str) -> None:
    with a_night(tmp_path, prometheus, resources={"nproc_per_node": 1, "max_failures": 0}) as night:
        night.trains(0)
        assert night.prometheus.firing() <= {"Watchdog"} and night.webhook.told == []
        night.switch("fail", on=True)
        night.pages("RunFailed")
        night.told("failed")
        assert "the disk of node7 is full" in night.webhook.told[0]["text"]
        run_id = night.webhook.told[0]["run_id"]
        assert night.live.shell("ack", run_id, "--note", "known").returncode == 0
        night.is_silent()
        night.switch("fail", on=False)
        night.resume("code=own.py")
        night.trains(1)
        assert night.webhook.events == ["failed"], "who has said that they know is not told that it is over"
        night.switch("fail", on=True)
        night.pages("RunFailed")
        night.told("failed", "failed")
        night.switch("fail", on=False)
        night.resume("code=own.py")
        night.is_silent()
        night.told("failed", "failed", "mended")


@pytest.mark.slow
def test_a_run_whose_owner_is_killed_pages_until_it_is_resumed(tmp_path: Path, prometheus: str) -> None:
    with a_night(tmp_path, prometheus) as night:
        night.trains(0)
        psutil.Process(night.live.run.job(0).pid).kill()
        night.pages("RunLost")
        night.told("lost")
        time.sleep(20)
        assert "RunLost" in night.prometheus.firing() and night.webhook.events == ["lost"]
        night.resume()
        night.is_silent()
        night.told("lost", "mended")
        night.trains(1)


@pytest.mark.slow
def test_a_loop_pages_at_the_failure_that_makes_it_one_and_ends_with_a_checkpoint(
    tmp_path: Path, prometheus: str
) -> None:
    with a_night(tmp_path, prometheus, "die", checkpoint={"every_steps": 10}) as night:
        night.live.wait(lambda: night.live.run.outcome(1) is not None, 240)
        assert "RunRestartLoop" not in night.prometheus.firing() and night.webhook.told == []
        night.pages("RunRestartLoop", 240)
        night.told("restart loop")
        assert night.live.run.attempts()[-1] in (2, 3)
        night.switch("die", on=False)
        night.is_silent(240)
        night.told("restart loop", "mended")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["start", "validation", "end"])
def test_a_hang_pages_wherever_it_is_and_ends_with_it(tmp_path: Path, prometheus: str, where: str) -> None:
    with a_night(tmp_path, prometheus, f"hang-{where}", validation={"every_steps": 20}) as night:
        if where == "end":
            night.trains(0, 60)
            assert night.prometheus.firing() <= {"Watchdog"}
            assert night.live.shell("stop", "--no-wait", night.live.run.url).returncode == 0
        if where == "validation":
            night.live.wait(lambda: night.live.happened(0, "validating"), 240)
            night.is_silent()  # a start may have been slow
        night.pages("RunStalled", 240)
        state = {"start": "starting", "validation": "running", "end": "saving"}[where]
        assert night.prometheus.value(f'launcher_run_state{{state="{state}"}}') == 1
        night.switch(f"hang-{where}", on=False)
        night.is_silent(120)


@pytest.mark.slow
def test_a_frozen_worker_is_down_and_the_clock_of_its_node_is_not_asked(tmp_path: Path, prometheus: str) -> None:
    with a_night(tmp_path, prometheus) as night:
        night.trains(0)
        worker = night.live.worker(0, 0)
        worker.send_signal(signal.SIGSTOP)
        night.pages("RunDown")
        night.pages("RunStalled")
        os.kill(worker.pid, signal.SIGCONT)
        night.is_silent()
