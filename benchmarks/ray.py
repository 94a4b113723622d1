"""How fast a run on Ray starts, gives way, and is on again, beside ray.train.TorchTrainer, SLURM and one machine.

    pip install 'ray[train]'; python benchmarks/ray.py [--rounds 3] [--without slurm,trainer]

Seconds of the bundled quickstart with two workers, from the moment a command is started to the first row of metrics:
on two nodes of the Ray of `launch sandbox`, by agents in actors (ours) and by TorchTrainer with the very same worker;
on two nodes of a SLURM (where its packages are); on this machine. Then, on Ray: a notice of preemption, SIGKILL of a
worker, and what is left running after a stop. Medians and spread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from launchyard.host.processes import end_all, marked
from launchyard.launcher.sandbox.ray.host import Settings
from launchyard.launcher.sandbox.ray.site import Site

LAUNCH = [sys.executable, "-m", "launchyard"]
READY_SECONDS = 15  # after a start, until the next torchrun stands by: runs are not killed in their first steps
WORDS = ["train.device=cpu", "train.max_steps=100000", "checkpoint.every_steps=50", "metrics.prometheus=false"]
DYING_SECONDS = 3  # the other worker may write rows as long after a kill; nobody is back as soon

# The same worker under TorchTrainer: its process group is given up for the worker's own, and signals are not heard.
TRAINER = """
import os, sys
import ray, torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def train(config):
    from launchyard.training.stop import StopFlag
    from launchyard.training.worker import main
    StopFlag.install = lambda self: None  # it trains in a thread, where no handler can be installed
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    main(["worker", config["url"]])

scaling = ScalingConfig(num_workers=2, placement_strategy="STRICT_SPREAD", resources_per_worker={"CPU": 1})
running = RunConfig(name="bench", storage_path=sys.argv[2], failure_config=FailureConfig(max_failures=3))
TorchTrainer(train, train_loop_config={"url": sys.argv[1]}, scaling_config=scaling, run_config=running).fit()
"""


class Bench:
    """One Ray, and the runs of each round."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, Site(folder / "r")
        folders = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CACHE", "CONFIG")}
        self.env = {**os.environ, **folders}

    def launch(self, *words: str) -> str:
        done = subprocess.run([*LAUNCH, *words], cwd=self.folder, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"launch {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def prepare(self) -> None:
        """The cluster file; and the text is tokenized once, which is not what is measured."""
        cluster = {
            "name": "bench", "scheduler": "ray", "node": {"cpus": 1}, "storage": str(self.folder / "runs"),
            "ray": {"address": self.site.address, "python": sys.executable}, "environment": {"OMP_NUM_THREADS": "1"},
        }  # fmt: skip
        (self.folder / "bench.yaml").write_text(yaml.safe_dump(cluster))
        self.launch("--local", "--run-url", "first", "--follow", "train.max_steps=1", "train.device=cpu")

    # -- on Ray, ours ----------------------------------------------------------------------------------------------
    def ours(self, number: int) -> dict[str, float]:
        run, began = self.folder / f"ours{number}", time.time()
        self.launch("quickstart", "--cluster", "./bench.yaml", "--nodes", "2", "--run-url", str(run), *WORDS)
        found = {"ours: launch returns": time.time() - began, "ours: first step": first_row(run) - began}
        preempt = self.drill("preempt", run)
        found |= {
            "ours: notice -> committed": preempt["committed_seconds"],
            "ours: notice -> first step": preempt["first_step_seconds"],
            "ours: steps lost by preemption": preempt["steps_lost"],
        }
        time.sleep(READY_SECONDS)
        kill = self.drill("kill", run)
        found |= {
            "ours: worker killed -> first step": kill["first_step_seconds"],
            "ours: steps lost by the kill": kill["steps_lost"],
        }
        began = time.time()
        self.launch("cancel", str(run))
        return found | {"ours: cancel -> nothing left": wait(lambda: not marked(str(run))) - began}

    def drill(self, kind: str, run: Path) -> dict[str, Any]:
        return dict(json.loads(self.launch("drill", kind, str(run), "--json")))

    # -- on Ray, TorchTrainer --------------------------------------------------------------------------------------
    def trainer(self, number: int) -> dict[str, float]:
        """A job of Ray Jobs that fits; the run directory is made by a submission that is taken back."""
        run = self.folder / f"trainer{number}"
        self.launch("--local", "--run-url", str(run), "--detach", "resources.nproc_per_node=2", *WORDS)
        self.launch("cancel", str(run))
        shutil.rmtree(run / "attempts")
        (run / "outcome.json").unlink(missing_ok=True)
        shutil.rmtree(run / "metrics", ignore_errors=True)
        script = self.folder / "trainer.py"
        script.write_text(TRAINER)
        began = time.time()
        root = f"{Path(__file__).resolve().parents[1]}:{os.environ.get('PYTHONPATH', '')}"
        request = {
            "entrypoint": f"{sys.executable} {script} {run} {self.folder}/train{number}",
            "runtime_env": {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
        }
        job = self.site.dashboard.submit(request)
        try:
            try:
                found = {"TorchTrainer: first step": first_row(run) - began}
            except SystemExit:
                print(self.site.dashboard.logs(job)[-3000:], file=sys.stderr)
                raise
            began = time.time()
            trainer_workers(self.site)[-1].kill()
            wait(lambda: last_row_time(run) > began + DYING_SECONDS, 90)
            found["TorchTrainer: worker killed -> first step"] = last_row_time(run) - began
        finally:
            began = time.time()
            self.site.dashboard.stop(job)
            self.site.dashboard.wait_gone(job, seconds=30)
        left = wait(lambda: not trainer_workers(self.site), 30, fails=False)
        end_all(trainer_workers(self.site))
        return found | {"TorchTrainer: stop -> nothing left": left - began}

    # -- elsewhere ---------------------------------------------------------------------------------------------------
    def local(self, number: int) -> dict[str, float]:
        run, began = self.folder / f"local{number}", time.time()
        self.launch("--local", "--detach", "--run-url", str(run), "resources.nproc_per_node=2", *WORDS)
        found = {"this machine: first step": first_row(run) - began}
        self.launch("cancel", str(run))
        return found


def trainer_workers(site: Site) -> list[psutil.Process]:
    found = []
    for process in site.processes():
        try:
            if "RayTrainWorker" in process.name() or "TrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def last_row_time(run: Path) -> float:
    """When the newest whole row was written; 0 while there is none."""
    rows = [line for path in (run / "metrics").glob("steps-*.jsonl") for line in path.read_text().splitlines()]
    whole = [line for line in rows if line.endswith("}")]
    return max((float(json.loads(line)["time"]) for line in whole[-50:]), default=0.0)


def first_row(run: Path, seconds: float = 90) -> float:
    """When the first step was finished."""

    def line() -> str:
        files = sorted((run / "metrics").glob("steps-*.jsonl"))
        return files[0].read_text().partition("\n")[0] if files else ""

    wait(lambda: line().endswith("}"), seconds)
    return float(json.loads(line())["time"])


def wait(done: Callable[[], bool], seconds: float = 60, *, fails: bool = True) -> float:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            if fails:
                raise SystemExit(f"nothing within {seconds} s")
            break
        time.sleep(0.02)
    return time.time()


def slurm_first_steps(rounds: int) -> list[dict[str, float]]:
    """By its own benchmark, on two nodes too."""
    script = Path(__file__).with_name("slurm.py")
    done = subprocess.run([sys.executable, str(script), f"--rounds={rounds}"], capture_output=True, text=True)
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| first step")]
    return [{"SLURM: first step": float(row[2].split()[0])} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", default="", help="of ours, trainer, local, slurm; with commas")
    asked = parser.parse_args()
    without = asked.without.split(",")
    folder = Path(tempfile.mkdtemp(prefix="lybench-", dir="/tmp"))
    bench, found = Bench(folder), list[dict[str, float]]()
    try:
        began = time.time()
        bench.site.start(Settings(nodes=2, cpus_per_node=2))
        found.append({"two nodes of Ray up": time.time() - began})
        bench.prepare()
        kinds = [kind for kind in ("ours", "trainer", "local") if kind not in without]
        for number in range(asked.rounds):
            for kind in kinds:
                found.append(getattr(bench, kind)(number))
                print(found[-1], file=sys.stderr, flush=True)
    finally:
        bench.site.stop()
        shutil.rmtree(folder)
    if "slurm" not in without and shutil.which("slurmctld", path="/usr/sbin:/usr/bin"):
        found += slurm_first_steps(asked.rounds)
    print("| what | value |\n|---|---|")
    for name in dict.fromkeys(key for one in found for key in one):
        values = [one[name] for one in found if name in one]
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


if __name__ == "__main__":
    main()
