"""How fast a run is back: a worker is killed again and again, and the seconds to the first new step are taken.

    python benchmarks/recovery.py [--kills 5] [--pause 20] [--cluster NAME] [--nodes 1] [--ranks 2]
    python benchmarks/recovery.py --goodput 10 --pause 60
    python benchmarks/recovery.py --cluster sandbox-ray --nodes 2 --ranks 1      # after `launch sandbox up ray`
    python benchmarks/recovery.py --cluster sandbox-slurm --nodes 2 --ranks 1 --spares 1 --fault node-loss --kills 1

The run is the bundled quickstart with more steps than it can make; `launch drill` brings the fault, and measures from
it to the first step that the next attempt finishes. Side by side, one after the other: with snapshots in memory, and
without (a killed worker alone: what a node takes with it is no matter of the disk). The pauses are long enough for the
next torchrun to stand by. `--goodput MINUTES`: one run, killed after each pause, and the share of its time that
brought it forward.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import tell

from launchyard.run.goodput import read_goodput
from launchyard.run.rundir import RunDir

LAUNCH = [sys.executable, "-m", "launchyard"]
SIDES = {"snapshots": "auto", "disk alone": "null"}


class Measured:
    """One run of the quickstart, live while the block lasts."""

    def __init__(self, folder: Path, name: str, given: argparse.Namespace, snapshots: str) -> None:
        self.url = str(folder / name)
        place = ["--cluster", given.cluster, "--nodes", str(given.nodes)] if given.cluster else ["--local"]
        self._argv = [
            *LAUNCH, "quickstart", *place, "--detach", "--run-url", self.url, "train.max_steps=100000",
            "train.device=cpu", f"resources.nproc_per_node={given.ranks}", "validation.every_steps=null",
            "checkpoint.every_steps=500", f"checkpoint.snapshot_steps={snapshots}", "resources.max_failures=1000",
            f"resources.spare_nodes={given.spares}",
        ]  # fmt: skip
        self._fault = given.fault

    def __enter__(self) -> Measured:
        subprocess.run(self._argv, check=True, stdout=subprocess.DEVNULL)
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run([*LAUNCH, "cancel", self.url], check=False, stdout=subprocess.DEVNULL)

    def hurt(self) -> dict[str, Any]:
        done = subprocess.run([*LAUNCH, "drill", self._fault, self.url, "--json"], check=True, stdout=subprocess.PIPE)
        return dict(json.loads(done.stdout))


def recoveries(given: argparse.Namespace, folder: Path) -> None:
    seconds: dict[str, list[float]] = {}
    sides = SIDES if given.fault == "kill" else {"snapshots": "auto"}
    for number, (side, snapshots) in enumerate(sides.items()):
        with Measured(folder, f"run{number}", given, snapshots) as run:
            found = []
            for _ in range(given.kills):
                time.sleep(given.pause)
                found.append(run.hurt())
        seconds[side] = [float(one["first_step_seconds"]) for one in found]
        lost = [int(one["steps_lost"]) for one in found]
        times = seconds[side]
        print(
            f"{side:12} {given.fault} to the first step: {statistics.median(times):5.2f} s ({min(times):.2f} to "
            f"{max(times):.2f}); steps lost: {statistics.median(lost):g} ({min(lost)} to {max(lost)})"
        )
    tell({f"recovery, {side}": times for side, times in seconds.items()})


def goodput(given: argparse.Namespace, folder: Path) -> None:
    with Measured(folder, "run", given, "auto") as run:
        end = time.monotonic() + 60 * given.goodput
        kills = 0
        while time.monotonic() + given.pause < end:
            time.sleep(given.pause)
            run.hurt()
            kills += 1
        time.sleep(max(0.0, end - time.monotonic()))
        found = read_goodput(RunDir(run.url))
    shares = ", ".join(f"{cause} {spent:.1f} s" for cause, spent in found.seconds.items() if spent)
    print(f"{kills} kills in {given.goodput:g} minutes: goodput {found.ratio:.1%} ({shares})")
    tell({"goodput": [float(found.ratio or 0.0)]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--pause", type=float, default=20.0, help="seconds before each kill")
    parser.add_argument("--fault", choices=("kill", "node-loss", "freeze"), default="kill")
    parser.add_argument("--spares", type=int, default=0, help="nodes that wait for another to be lost")
    parser.add_argument("--goodput", type=float, help="minutes")
    parser.add_argument("--cluster", help="a cluster file or its name; default: this machine")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=2, help="workers of each node")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("STATE", "CACHE", *([] if given.cluster else ["CONFIG"])):
            os.environ[f"XDG_{kind}_HOME"] = str(Path(folder) / kind)
        measure = recoveries if given.goodput is None else goodput
        measure(given, Path(folder))


if __name__ == "__main__":
    main()
