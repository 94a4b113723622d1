"""Going on from memory, with each method that keeps state of its own: the run is the one that was not killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.agent.memory import AgentMemory
from launchyard.model.adapter import Adapter
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.small_runs import make_run, run_workers, start_workers, write_data
from tests.training.checkpoint.test_memory_runs import assert_same_run, kill_when, memory, reached, started
from tests.training.stability.test_runs import SPIKES, noisy

__all__ = ["memory", "noisy"]
EVERY_STEP = {"checkpoint.snapshot_steps": 1}
KILLED_AT = (9, 23)
SHORT = {"train.max_steps": 32, "checkpoint.every_steps": 12}
METHODS: dict[str, dict[str, Any]] = {
    "saves that hold a step up": {"checkpoint.async_save": False},
    "fp16": {"train.precision": "fp16-mixed"},
    "bf16 with a compensated sum": {"train.precision": "bf16-true", "train.bf16_rounding": "compensated"},
    "muon": {"optimizer.name": "muon", "train.ema_decay": 0.9},
    "averaged weights": {"optimizer.name": "adamw-schedule-free", "schedule.name": "constant"},
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def killed_and_resumed(run: RunDir, nproc: int) -> None:
    for at in KILLED_AT:
        kill_when(run, nproc, lambda at=at: reached(run) >= at)
    run_workers(run, nproc)
    assert started(run)["source"] == "memory"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_on_from_memory(method: str, data: DataSpec, memory: AgentMemory, tmp_path: Path) -> None:
    expected, run = (make_run(tmp_path / name, data, SHORT | METHODS[method] | EVERY_STEP) for name in ("one", "other"))
    run_workers(expected, 1, {"checkpoint.snapshot_steps": None})
    killed_and_resumed(run, 1)
    assert_same_run(run, expected)


@pytest.mark.parametrize("nproc", [1, 2])
def test_an_adapter_goes_on_from_memory(nproc: int, data: DataSpec, memory: AgentMemory, tmp_path: Path) -> None:
    expected, run = (make_run(tmp_path / name, data, SHORT | EVERY_STEP) for name in ("one", "other"))
    for one in (expected, run):
        adapter = Adapter(kind="lora", r=4, dropout=0.1)
        one.write_json("plan.json", {**one.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})
    run_workers(expected, nproc, {"checkpoint.snapshot_steps": None})
    killed_and_resumed(run, nproc)
    assert_same_run(run, expected)


def test_a_run_that_is_killed_after_it_went_back(noisy: DataSpec, memory: AgentMemory, tmp_path: Path) -> None:
    options = SPIKES | {"stability.on_spike": "rewind"} | EVERY_STEP
    expected, run = (make_run(tmp_path / name, noisy, options) for name in ("one", "other"))
    run_workers(expected, 1, {"checkpoint.snapshot_steps": None})
    (process,) = start_workers(run, 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(event["event"] == "rewound" for event in run.events(0)):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run_workers(run, 1)
    assert_same_run(run, expected)
