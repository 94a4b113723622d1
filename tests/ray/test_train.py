"""Our loop inside a TorchTrainer of Ray Train: a worker is killed in the middle, and the training is the same."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from launchyard.host.processes import end_all
from launchyard.launcher.python.handle import Run
from launchyard.run.rundir import RunDir
from tests.ray.runs import LONG, Site, same_training

pytestmark = pytest.mark.ray
DRIVER = """
import json, sys
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
import launchyard.ray_train

given = json.loads(sys.argv[1])
ray.init(address="auto", runtime_env={"env_vars": given["env"]}, log_to_driver=False)
result = TorchTrainer(
    launchyard.ray_train.train_loop,
    train_loop_config={"recipe": given["recipe"], **given["config"]},
    scaling_config=ScalingConfig(num_workers=given["workers"]),
    run_config=RunConfig(name="trainer", storage_path=given["storage"], failure_config=FailureConfig(max_failures=1)),
).fit()
print(json.dumps({"metrics": result.metrics, "checkpoint": result.checkpoint.path}))
"""


class Trainer:
    """A person's program with a TorchTrainer, in the network of the test's Ray."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.run = RunDir(str(place.here / "storage/trainer/launchyard"))
        (place.here / "driver.py").write_text(DRIVER)

    def fit(self, *words: str, workers: int = 2) -> dict[str, Any]:
        """Until it has ended; what it printed last. `words` are KEY=VALUE."""
        overrides = {key: json.loads(value) for key, value in (word.split("=") for word in words)}
        names = ("PYTHONPATH", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
        given = {
            "recipe": str(self.place.here / "tiny.yaml"),
            "config": {"overrides": overrides, "report_every": 20},
            "workers": workers,
            "storage": str(self.place.here / "storage"),
            "env": {name: self.place.env[name] for name in names} | {"OMP_NUM_THREADS": "1"},
        }
        environment = ["env", *(f"{name}={value}" for name, value in given["env"].items())]
        program = [sys.executable, str(self.place.here / "driver.py"), json.dumps(given)]
        done = self.place.cluster.site.run(*environment, *program, seconds=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.place.cluster.site.processes() if "RayTrainWorker" in p.name()]


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Runs an action in a thread; its error is raised at the end."""
    import threading

    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join(1.0)
    if errors:
        raise errors[0]


def test_a_killed_worker_changes_nothing(place: Site, undisturbed: RunDir) -> None:
    """Its trainer starts both anew; then another trainer of that name goes on with one worker more."""
    trainer = Trainer(place)
    run = trainer.run

    def kill_one() -> None:
        end = time.monotonic() + 100
        while not run.exists("checkpoints/step-00000020/manifest.json"):
            assert time.monotonic() < end, "no checkpoint"
            time.sleep(0.05)
        end_all([worker for worker in trainer.workers() if worker.pid != run.job(0).pid][:1])

    with meanwhile(kill_one):
        result = trainer.fit(LONG)
    assert run.attempts() == [0, 1]
    assert (first := run.outcome(0)) is not None and first.reason == "workers lost"
    same_training(run, undisturbed)
    assert result["checkpoint"] == run.path("checkpoints/step-00000120"), "our own checkpoint is Ray's"
    assert (Path(result["checkpoint"]) / "manifest.json").exists()
    assert result["metrics"]["step"] == 120
    state = Run.at(run).status()
    assert (state.state, state.resumable) == ("completed", False)
    assert trainer.fit("train.max_steps=128", workers=4)["metrics"]["step"] == 128
    assert (run.attempts(), run.job(2).world_size) == ([0, 1, 2], 4)
