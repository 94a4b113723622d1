"""How fast a run on SLURM starts, gives way, and is on again: the sandbox's SLURM on this machine, two nodes.

    python benchmarks/slurm.py [--rounds 3] [--workers 1]

Seconds of the bundled quickstart on two nodes, from the moment the command is started to the first row of metrics;
then of `launch drill preempt` (notice of a preemption, agreed save, back into the queue, started again) and
`launch drill kill` (SIGKILL of a worker, started again inside the allocation). The hold of a requeued job is SLURM's
own (here 6 s, 121 s at most sites) and told apart. Medians and spread.
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
from pathlib import Path
from typing import Any

import yaml

from launchyard.launcher.sandbox.slurm.conf import Settings
from launchyard.launcher.sandbox.slurm.site import Site

READY_SECONDS = 15  # after a start, until the next torchrun stands by: runs are not killed in their first steps
LAUNCH = [sys.executable, "-m", "launchyard"]


class Bench:
    """One SLURM, and the run of each round."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.site = Site(folder / "s")
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
            "name": "bench", "scheduler": "slurm", "node": {"cpus": 2}, "storage": str(self.folder / "runs"),
            "slurm": {"partition": "spot", "notice_seconds": 10},
            "environment": {"SLURM_CONF": str(self.site.conf), "OMP_NUM_THREADS": "1"},
        }  # fmt: skip
        (self.folder / "bench.yaml").write_text(yaml.safe_dump(cluster))
        self.launch("--local", "--run-url", "first", "--follow", "train.max_steps=1", "train.device=cpu")

    def round(self, number: int) -> dict[str, float]:
        run = self.folder / f"run{number}"
        began = time.time()
        self.launch(
            "quickstart", "--cluster", "./bench.yaml", "--nodes", "2", "--run-url", str(run), "train.device=cpu",
            "train.max_steps=100000", f"resources.nproc_per_node={self.workers}", "checkpoint.every_steps=50",
        )  # fmt: skip
        queued = time.time() - began
        found = {"launch returns": queued, "first step": first_row(run) - began}
        preempt = self.drill("preempt", run)
        found |= {
            "notice -> agreed": preempt["agreed_seconds"],
            "notice -> committed": preempt["committed_seconds"],
            "notice -> started again": preempt["claimed_seconds"],
            "started again -> first step": preempt["first_step_seconds"] - preempt["claimed_seconds"],
        }
        time.sleep(READY_SECONDS)
        kill = self.drill("kill", run)
        found |= {"worker killed -> first step": kill["first_step_seconds"]}
        lost = {"steps lost by preemption": preempt["steps_lost"], "steps lost by the kill": kill["steps_lost"]}
        self.launch("cancel", str(run))
        return found | lost

    def drill(self, kind: str, run: Path) -> dict[str, Any]:
        return dict(json.loads(self.launch("drill", kind, str(run), "--json")))


def first_row(run: Path, seconds: float = 180) -> float:
    """When the first step was finished."""
    end = time.monotonic() + seconds
    rows = run / "metrics/steps-0000.jsonl"
    while time.monotonic() < end:
        if rows.exists() and (line := rows.read_text().partition("\n")[0]).endswith("}"):
            return float(json.loads(line)["time"])
        time.sleep(0.02)
    raise SystemExit(f"no step within {seconds} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of each node")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lybench-", dir="/tmp"))  # sockets need short paths
    bench = Bench(folder, asked.workers)
    try:
        bench.site.start(Settings(nodes=2))
        bench.prepare()
        found = [bench.round(number) for number in range(asked.rounds)]
    finally:
        bench.site.stop()
        shutil.rmtree(folder)
    print("| what | seconds |\n|---|---|")
    for name in found[0]:
        values = [one[name] for one in found]
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


if __name__ == "__main__":
    main()
