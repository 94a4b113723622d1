"""What the first step of `launch --local` waits for: seconds and CPU seconds of each stage, on the bundled quickstart.

    python benchmarks/timeline.py [--rounds 5] [--other FOLDER] [--set KEY=VALUE ...]

A stage ends with something that can be seen from outside: the job is written, a process of the run is born, a worker
has recorded its start, its parts are put together, the row of its first step is there. CPU seconds are those of each
process up to that row, in the kernel's account: they say what there is to do where other work has the cores.
--other: a checkout whose code is measured in turn with this one's, so that a change is told from the weather.
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

TICKS = os.sysconf("SC_CLK_TCK")
ROLES = {"backends.local.owner": "owner", "torch.distributed.run": "torchrun", "training.worker": "worker"}
Times = dict[str, float]


def boot_time() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def process(pid: int) -> tuple[float, float] | None:
    """Birth as Unix time, and CPU seconds; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return boot_time() + int(fields[19]) / TICKS, (int(fields[11]) + int(fields[12])) / TICKS


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def family(pid: int) -> dict[str, int]:
    """The processes below one, by role."""
    found = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        waiting += children(one)
        try:
            line = Path(f"/proc/{one}/cmdline").read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        for mark, role in ROLES.items():  # torchrun's line names the worker too: the first that fits
            if mark in line:
                found[role] = one
                break
    return found


def one_run(here: Path, code: Path, name: str, keys: list[str]) -> tuple[Times, Times]:
    """Seconds at which each stage ended, from the command on; CPU seconds of each process."""
    run = here / name
    attempt = run / "attempts/0000"
    rows = run / "metrics/steps-0000.jsonl"
    launch = [sys.executable, "-m", "launchyard"]
    env = {**os.environ, "PYTHONPATH": str(code / "src")}
    began = time.time()
    command = subprocess.Popen(
        [*launch, "--local", "--run-url", name, *keys], cwd=here, env=env, stdout=subprocess.DEVNULL
    )
    try:
        while not (rows.exists() and rows.stat().st_size):
            assert time.time() - began < 300, "no step in five minutes"
            time.sleep(0.01)
        seen = time.time()
        job = json.loads((attempt / "job.json").read_text())
        alive = family(job["pid"])
        facts = {role: found for role, pid in alive.items() if (found := process(pid))}
        row = json.loads(rows.read_text().splitlines()[0])
        events = {
            event["event"]: event["time"]
            for event in map(json.loads, (attempt / "events.jsonl").read_text().splitlines())
        }
    finally:
        subprocess.run([*launch, "cancel", name], cwd=here, env=env, stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(command.pid, 0)
        command.returncode = 0
    ends = {"owner is born": facts["owner"][0], "job is claimed": job["created"]}
    if "torchrun" in facts:
        ends["torchrun is born"] = facts["torchrun"][0]
    ends |= {
        "worker is born": facts["worker"][0],
        "worker has read its run": events["process started"],
        "parts are composed": events["started"],
        "first step begins": row["time"] - row["step_seconds"],
        "first step is done": row["time"],
        "its row is written": seen,
    }
    spent = {"launch, to its end": usage.ru_utime + usage.ru_stime}
    spent |= {f"{role}, to the row": cpu for role, (_, cpu) in facts.items()}
    return {stage: when - began for stage, when in ends.items()}, spent | {"all": sum(spent.values())}


def report(title: str, runs: list[tuple[Times, Times]]) -> None:
    print(title)
    before = [0.0] * len(runs)
    for stage in runs[0][0]:
        at = [times[stage] for times, _ in runs]
        took = [end - start for end, start in zip(at, before, strict=True)]
        print(f"  {stage:26} at {statistics.median(at):6.2f} s  ({min(at):.2f} to {max(at):.2f})"
              f"  + {statistics.median(took):5.2f}")  # fmt: skip
        before = at
    for what in runs[0][1]:
        spent = [cpu[what] for _, cpu in runs]
        print(f"  CPU seconds, {what:20} {statistics.median(spent):5.2f}  ({min(spent):.2f} to {max(spent):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe")
    given = parser.parse_args()
    codes = [Path(__file__).absolute().parents[1], *([given.other] if given.other else [])]
    runs: dict[Path, list[tuple[Times, Times]]] = {code: [] for code in codes}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for kind in ("STATE", "CACHE", "CONFIG"):
            os.environ[f"XDG_{kind}_HOME"] = str(here / kind)
        for number in range(given.rounds + 1):
            for index, code in enumerate(codes if number % 2 else codes[::-1]):
                found = one_run(here, code, f"run{number}-{index}", given.set)
                if number:  # the first tokenizes the text
                    runs[code].append(found)
            print(f"round {number}, load {os.getloadavg()[0]:.1f}", flush=True)
    for code, found in runs.items():
        report(str(code), found)
    print(json.dumps({str(code): found for code, found in runs.items()}))


if __name__ == "__main__":
    main()
