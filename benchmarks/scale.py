"""What grows with ranks, checkpoints, attempts, runs and cached chunks: each at a size and at ten times that.

    python benchmarks/scale.py [--only status,owner]

Prints, for each thing, its figures and the ratio for ten times the size: 1.0 is a cost that does not grow, 10 one that
grows as its cause. No ranks are started: those of a checkpoint are simulated in one process. Takes some two minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the store and the small models of the tests

from results import about_machine, numbered  # noqa: E402
from scale_parts import PARTS, Grown  # noqa: E402


def told(one: Grown) -> str:
    points = "   ".join(f"{size:,}: {numbered(value):,g}" for size, value in zip(one.sizes, one.values, strict=True))
    return f"{one.name:44} × {one.ratio:6.2f} for 10 ×   {one.unit:9} {points}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas: " + ", ".join(PARTS))
    given = parser.parse_args()
    found = {}
    for name in given.only.split(","):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="launchyard-scale-") as folder:
            series = list(PARTS[name](Path(folder)))
        about = (PARTS[name].__doc__ or "").partition("\n")[0]
        print(f"\n{name}: {about}  ({time.perf_counter() - began:.0f} s)", flush=True)
        for one in series:
            print(told(one), flush=True)
        found[name] = [one.to_json() for one in series]
    print(json.dumps({**about_machine(f"python benchmarks/scale.py --only {given.only}"), "parts": found}))


if __name__ == "__main__":
    main()
