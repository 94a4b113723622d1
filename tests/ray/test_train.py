"""Our loop inside a TorchTrainer of Ray Train: a worker is killed in the middle, and the training is the same.

A Ray of its own, of one node, in a network that has nothing but loopback: a person's program starts and ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launchyard import Run, launch, load
from launchyard.host.processes import end_all
from launchyard.run.rundir import RunDir
from tests.ray.cluster import why_not
from tests.slurm.runs import RECIPE, same_training
from tests.support.small_runs import write_data

pytestmark = pytest.mark.ray
STEPS = 120
NETWORK = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]), "--net"]
DRIVER = """
import json, sys
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
import launchyard.ray_train

given = json.loads(sys.argv[1])
ray.init(num_cpus=4, _temp_dir=given["temporary"], log_to_driver=False)
result = TorchTrainer(
    launchyard.ray_train.train_loop,
    train_loop_config=given["config"],
    scaling_config=ScalingConfig(num_workers=given["workers"]),
    run_config=RunConfig(name="trainer", storage_path=given["storage"], failure_config=FailureConfig(max_failures=1)),
).fit()
print(json.dumps({"metrics": result.metrics, "checkpoint": result.checkpoint.path}))
"""


def network_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


class Trainer:
    """A person's program with a TorchTrainer."""

    def __init__(self, here: Path, recipe: dict[str, Any], temporary: str) -> None:
        self.run = RunDir(str(here / "storage/trainer/launchyard"))
        self._here = here
        self.recipe = recipe
        self._temporary = temporary
        self._network = ""

    def start(self, workers: int, **overrides: object) -> subprocess.Popen[str]:
        given = {
            "config": {"recipe": self.recipe, "overrides": overrides, "report_every": 40},
            "workers": workers,
            "storage": str(self._here / "storage"),
            "temporary": self._temporary,
        }
        argv = [*NETWORK, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        with open(self._here / "driver.log", "a") as log:
            program = subprocess.Popen(
                [*argv, sys.executable, "-c", DRIVER, json.dumps(given)],
                cwd=self._here, env=env, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        while network_of(program.pid) == network_of(os.getpid()):
            assert program.poll() is None, self.log()
            time.sleep(0.01)
        self._network = network_of(program.pid)
        return program

    def ended(self, program: subprocess.Popen[str]) -> dict[str, Any]:
        said, _ = program.communicate(timeout=500)
        assert program.returncode == 0, self.log()
        return dict(json.loads(said.strip().splitlines()[-1]))

    def log(self) -> str:
        return (self._here / "driver.log").read_text()[-8000:]

    def processes(self) -> list[psutil.Process]:
        found = [pid for pid in psutil.pids() if self._network and network_of(pid) == self._network]
        return [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]

    def kill_one(self) -> None:
        """A worker that is not the owner of the run, once there is a checkpoint."""
        end = time.monotonic() + 400
        while not self.run.exists("checkpoints/step-00000020/manifest.json"):
            assert time.monotonic() < end, "no checkpoint"
            time.sleep(0.05)
        workers = [process for process in self.processes() if "RayTrainWorker" in process.name()]
        end_all([worker for worker in workers if worker.pid != self.run.job(0).pid][:1])


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    if lacks := why_not():
        pytest.skip(lacks)
    data = write_data(tmp_path / "tokens", 40_000)
    recipe = {**RECIPE, "data": {**RECIPE["data"], "source": data.train[0].folder}}
    recipe = {**recipe, "train": {**RECIPE["train"], "max_steps": STEPS}}
    with tempfile.TemporaryDirectory(prefix="lyt-", ignore_cleanup_errors=True) as temporary:  # sockets want it short
        made = Trainer(tmp_path, recipe, temporary)
        yield made
        end_all(made.processes())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_changes_nothing(trainer: Trainer, tmp_path: Path) -> None:
    """Ray starts both workers anew; then another trainer of that name goes on with one worker, on fewer."""
    one_thread = {"name": "here", "scheduler": "local", "environment": {"OMP_NUM_THREADS": "1"}}
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(one_thread))
    undisturbed = launch(
        trainer.recipe,
        overrides={"resources.nproc_per_node": 2},
        cluster=tmp_path / "here.yaml",
        run_url=tmp_path / "undisturbed",
    )
    undisturbed.wait(300)
    run = trainer.run
    program = trainer.start(2)
    killer = threading.Thread(target=trainer.kill_one, daemon=True)
    killer.start()
    result = trainer.ended(program)
    assert run.attempts() == [0, 1]
    assert (first := run.outcome(0)) is not None and first.outcome == "failed"
    same_training(run, RunDir(undisturbed.url))
    assert result["metrics"]["step"] == STEPS
    assert result["checkpoint"] == run.path(run.checkpoint_dir(STEPS)), "our own checkpoint is Ray's"
    assert load(result["checkpoint"]).config.dim == RECIPE["model"]["dim"]
    state = Run.at(run).status()
    assert (state.state, state.resumable) == ("completed", False)
    longer = trainer.ended(trainer.start(1, **{"train.max_steps": STEPS + 4}))
    assert longer["metrics"]["step"] == STEPS + 4
    assert (run.attempts(), run.job(2).world_size) == ([0, 1, 2], 1)
