"""How cost grows: model, sequence, ranks, the agreement of ranks, the host's work at 1,024, chunks, length of a run.

    python benchmarks/growth.py [--only model,chunks] [--out FOLDER]

Each axis is measured at some sizes (benchmarks/growth_axes.py); a slope is that of a straight line through the
logarithms, and beside it stands the slope of what is expected at the same sizes: a formula, a plan's estimate, a line
or a constant. Takes some 5 minutes of two cores. With --out a result file and a drawing of each axis go there.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the small runs of the tests

from growth_axes import AXES, HOP_SECONDS, Series, pairs, ring  # noqa: E402
from results import about_machine, numbered  # noqa: E402

from launchyard.run.svg import growth_svg  # noqa: E402

TOLERANCE = 0.2  # of a slope: what a busy machine adds


@dataclass(frozen=True)
class Fitted:
    """A series with its slope."""

    series: Series

    @property
    def medians(self) -> list[float]:
        return [statistics.median(values) for values in self.series.values]

    @property
    def slope(self) -> float:
        return slope_of(self.series.xs, self.medians)

    @property
    def expected(self) -> float:
        return slope_of(self.series.xs, self.series.expected)

    @property
    def verdict(self) -> str:
        above = self.slope - self.expected
        if above > TOLERANCE:
            return "steeper"
        return "flatter" if above < -TOLERANCE else "as expected"

    def to_json(self) -> dict[str, Any]:
        series = self.series
        spreads = [(min(values), max(values)) for values in series.values]
        return {
            "name": series.name,
            "unit": series.unit,
            "sizes": list(series.xs),
            "medians": [numbered(value) for value in self.medians],
            "spreads": [[numbered(low), numbered(high)] for low, high in spreads],
            "slope": round(self.slope, 2),
            "expected": round(self.expected, 2),
            "verdict": self.verdict,
            "note": series.note,
        }


def slope_of(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the line through the logarithms that has the least squares."""
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(y) for y in ys]).slope


def drawing(name: str, about: str, fitted: Sequence[Fitted]) -> str:
    grown = {
        one.series.name: (
            list(zip(one.series.xs, one.medians, strict=True)),
            list(zip(one.series.xs, one.series.expected, strict=True)),
        )
        for one in fitted
    }
    first = fitted[0].series.xs[0]
    return growth_svg(grown, title=name, below=f"{about}: times the least ({first:,.0f}); faint: as expected")


def told(one: Fitted) -> str:
    points = "  ".join(f"{x:,.0f}: {value:.3g}" for x, value in zip(one.series.xs, one.medians, strict=True))
    slopes = f"slope {one.slope:5.2f}, expected {one.expected:5.2f}, {one.verdict}"
    return f"{one.series.name:28} {slopes:50} {one.series.unit:8} {points}"


def agreement_at(ranks: int, measured: Sequence[Fitted]) -> dict[str, dict[str, float]]:
    """One agreement on machines of their own: seconds on the network, messages one after the other; and of CPU, as much
    a message as where most ranks were measured.
    """
    found = {}
    for name, one, messages in zip(("ours", "ring"), measured, (pairs, ring), strict=True):
        cpu = one.medians[-1] / messages(int(one.series.xs[-1])) * messages(ranks)
        found[name] = {"network": messages(ranks) * HOP_SECONDS, "cpu": numbered(cpu)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(AXES), help="axes, by commas: " + ", ".join(AXES))
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, drawn, modelled = {}, {}, {}
    for name in given.only.split(","):
        began = time.perf_counter()
        axis = AXES[name]
        about = (axis.__doc__ or "").strip()
        fitted = [Fitted(series) for series in axis()]
        print(f"\n{name}: {about.splitlines()[0]}  ({time.perf_counter() - began:.0f} s)", flush=True)
        for one in fitted:
            print(told(one), flush=True)
        if name == "agreement":
            modelled = agreement_at(1024, fitted)
            print(f"at 1,024 ranks, {HOP_SECONDS * 1e6:.0f} µs a message: {json.dumps(modelled)}")
        found[name] = {"about": " ".join(about.split()), "series": [one.to_json() for one in fitted]}
        drawn[name] = drawing(name, about.splitlines()[0].partition(".")[0].partition(",")[0], fitted)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/growth.py --only {given.only}"
        facts = {**about_machine(command), "axes": found, "agreement_of_1024_ranks_seconds": modelled}
        (given.out / f"{time.strftime('%F')}-growth.json").write_text(json.dumps(facts, indent=1) + "\n")
        for name, svg in drawn.items():
            (given.out / f"growth-{name}.svg").write_text(svg)


if __name__ == "__main__":
    main()
