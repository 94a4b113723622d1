"""How fast the command is: `launch --help`, a dry run, and the first finished step of `launch --local`.

    python benchmarks/start.py [--rounds 5]

Wall seconds of whole processes, from the moment the command is started; medians and spread. The first step is that of
the bundled quickstart with its text already tokenized, read off the run directory as it is written. Beside them,
in the same rounds: a bare `python -c pass`, and `python -c "import torch"`, which a worker cannot do without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import tell

LAUNCH = [sys.executable, "-m", "launchyard"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    'python -c "import torch"': [sys.executable, "-c", "import torch"],
    "launch --help": [*LAUNCH, "--help"],
    "launch --local --dry-run": [*LAUNCH, "--local", "--dry-run"],
}


def timed(argv: list[str], here: Path) -> float:
    began = time.perf_counter()
    subprocess.run(argv, cwd=here, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_step(here: Path, number: int) -> float:
    """Seconds from the command to the first row of metrics."""
    rows = here / f"run{number}/metrics/steps-0000.jsonl"
    argv = [*LAUNCH, "--local", "--run-url", f"run{number}", "--follow"]
    began = time.perf_counter()
    process = subprocess.Popen(argv, cwd=here, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (rows.exists() and rows.stat().st_size):
            assert process.poll() is None, "the run ended before its first step"
            assert time.perf_counter() - began < 300, "no step in five minutes"
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        subprocess.run([*LAUNCH, "cancel", f"run{number}"], cwd=here, stdout=subprocess.DEVNULL)
        process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in [*COMMANDS, "first step of launch --local"]}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for kind in ("STATE", "CACHE", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = str(here / kind)
        first_step(here, 0)  # tokenizes the text
        for number in range(1, given.rounds + 1):
            for name, argv in COMMANDS.items():
                times[name].append(timed(argv, here))
            times["first step of launch --local"].append(first_step(here, number))
    for name, seconds in times.items():
        print(f"{name:32} {statistics.median(seconds):6.3f} s  ({min(seconds):.3f} to {max(seconds):.3f})")
    tell(times)


if __name__ == "__main__":
    main()
