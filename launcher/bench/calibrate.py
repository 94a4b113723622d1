"""The calibration of this machine, made in a process of its own as a worker of the plan would run. Knows no recipe."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from launchyard.errors import LaunchError
from launchyard.host.environment import own_environment
from launchyard.host.processes import end_child, python_argv, python_environment, start_shielded
from launchyard.launcher.backends.calibrations import calibration_file, machine_name
from launchyard.launcher.bench.alternatives import Subject
from launchyard.launcher.format import first_line
from launchyard.launcher.plan.speed import CALIBRATED, calibration_of
from launchyard.model.speed import Calibration
from launchyard.run import own_code

CALIBRATION_SECONDS = 20
MEASURE = "launchyard.training.trial.calibrate"


def find_calibration(subject: Subject) -> Calibration | None:
    """Of as many threads as a worker has, where it computes in what was measured."""
    return calibration_of(subject.host, _threads(subject)) if can_calibrate(subject) else None


def can_calibrate(subject: Subject) -> bool:
    return subject.plan.device == "cpu" and subject.plan.precision == CALIBRATED


def calibrate(subject: Subject, *, seconds: float) -> None:
    """Into the user's cache. LaunchError where it fails, or takes longer than so many seconds."""
    machine = machine_name()
    path = calibration_file(machine, threads=_threads(subject))
    path.parent.mkdir(parents=True, exist_ok=True)
    argv = [*python_argv(sys.executable), "-m", MEASURE, str(path), machine]
    env = {**own_environment(), **subject.plan.environment, "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as output:
        child = start_shielded(argv, env=python_environment(env, code=own_code.movable()), output=output)
        try:
            code = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise LaunchError(
                f"the calibration of this machine was not done after {seconds:.0f} s", hint="try a longer --max-time"
            ) from error
        finally:
            end_child(child)
        if code != 0:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            raise LaunchError(f"the calibration of this machine failed: {first_line(said[-1] if said else str(code))}")


def _threads(subject: Subject) -> int:
    return int(subject.plan.environment["OMP_NUM_THREADS"])
