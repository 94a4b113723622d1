"""The quick set: what can be measured in ten minutes without a network, in one table of goal, reached, ratio, spread.

    python benchmarks/quick.py [--only start,train] [--peers] [--out FOLDER]      # `make bench`

Each question is a script of this folder, run with small arguments; goals are those of benchmarks/goals.yaml. With
--peers the scripts that have peers run them too: those that are installed here, and those of folders .venv/peers/NAME,
which `make peers` makes. With --out a result file goes there, from which docs/reference/benchmarks.md is made.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from results import Figures, about_machine, heard_in, numbered

HERE = Path(__file__).parent
INSTALLED = HERE.parent / ".venv" / "peers"
MODULES = {"transformers": "transformers", "litgpt": "litgpt", "litdata": "litdata"}


@dataclass(frozen=True)
class Script:
    """`peers`: the option for them, what joins their names (None: words of their own), and their names.

    `own`: what the option holds without them.
    """

    arguments: str
    option: str = ""
    own: str = ""
    peers: tuple[str, ...] = ()
    by_commas: bool = True

    def words(self, there: list[str]) -> list[str]:
        names = [*filter(None, [self.own]), *(peer for peer in self.peers if peer in there)]
        told = [",".join(names)] if self.by_commas else names
        return [*self.arguments.split(), *([self.option, *told] if names else [])]


SCRIPTS = {
    "start": Script("--rounds 3"),
    "train": Script("--rounds 3 --steps 7", "--peers", "hand", ("transformers", "litgpt")),
    "loader": Script("--tokens 50000000 --rounds 5", "--peers", "", ("litdata",), by_commas=False),
    "prepare": Script("--rounds 3"),
    "checkpoint": Script("--rounds 3"),
    "transfer": Script("--rounds 5"),
    "metrics": Script("--pairs 12 --steps 1"),
    "generate": Script("--runs 3 --new 48", "--sides", "auto", ("transformers", "litgpt")),
}


def peers_there() -> dict[str, Path | None]:
    """Each peer that can be run: the folder that is added for it, None if it is installed here."""
    found: dict[str, Path | None] = {}
    for name, module in MODULES.items():
        if importlib.util.find_spec(module) is not None:
            found[name] = None
        elif (INSTALLED / name).is_dir():
            found[name] = INSTALLED / name
    return found


def run(name: str, peers: dict[str, Path | None]) -> Figures:
    script = SCRIPTS[name]
    words = script.words(list(peers))
    folders = [str(folder) for peer in script.peers if (folder := peers.get(peer)) is not None]
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *folders])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *words]
    print(f"== {name}.py {' '.join(words)}", file=sys.stderr, flush=True)
    done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}.py failed with status {done.returncode}; what it said is above")
    return heard_in(done.stdout)


def is_reached(goal: dict[str, Any], value: float) -> bool:
    return value <= goal["at_most"] if "at_most" in goal else value >= goal["at_least"]


def goal_text(goal: dict[str, Any]) -> str:
    word = "at_most" if "at_most" in goal else "at_least"
    return f"{word.replace('_', ' ')} {goal[word]:g} {goal.get('unit', '')}".strip()


def table(goals: list[dict[str, Any]], found: dict[str, Figures]) -> list[str]:
    """A line for each goal whose figure was measured."""
    lines = [f"{'what':48} {'goal':22} {'median':>10}  {'spread':24} {'of goal':>8}"]
    for goal in goals:
        values = found.get(goal["script"], {}).get(goal.get("figure", ""))
        if values:
            middle = statistics.median(values)
            bound = goal.get("at_most", goal.get("at_least"))
            spread = f"{min(values):.4g} to {max(values):.4g}"
            verdict = "reached" if is_reached(goal, middle) else "NOT REACHED"
            measured = f"{middle:10.4g}  {spread:24} {middle / bound:8.2f}  {verdict}"
            lines.append(f"{goal['what']:48.48} {goal_text(goal):22} {measured}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCRIPTS), help="scripts, by commas: " + ", ".join(SCRIPTS))
    parser.add_argument("--peers", action="store_true", help="beside those that are there")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    peers = peers_there() if given.peers else {}
    if given.peers:
        print(f"peers: {', '.join(peers) or 'none is there'}", file=sys.stderr)
    began, found, failed = time.monotonic(), dict[str, Figures](), dict[str, str]()
    for name in given.only.split(","):
        try:
            found[name] = run(name, peers)
        except (RuntimeError, ValueError) as error:
            failed[name] = str(error)
    goals = yaml.safe_load((HERE / "goals.yaml").read_text())
    print("\n".join(table(goals, found)))
    for name, why in failed.items():
        print(f"{name}: {why}")
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        facts = {**about_machine("make bench"), "peers": list(peers), "figures": shortened(found)}
        (given.out / f"{time.strftime('%F')}-quick.json").write_text(json.dumps(facts, indent=1) + "\n")
    if failed:
        sys.exit(1)


def shortened(found: dict[str, Figures]) -> dict[str, dict[str, list[float]]]:
    """Median, least and most of each figure."""
    return {
        script: {
            name: [numbered(of(values)) for of in (statistics.median, min, max)] for name, values in figures.items()
        }
        for script, figures in found.items()
    }


if __name__ == "__main__":
    main()
