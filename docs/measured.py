"""The page of benchmarks, made of benchmarks/goals.yaml and of the newest result files. Measures nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = BENCHMARKS / "results"
LINK = "../../benchmarks"
Goal = dict[str, Any]

OPENING = f"""\
What was to be reached, and what was measured: each figure by a [script]({LINK}/README.md) that measures what it is
compared to in the same run, published with machine, versions and command in the file that it links to. Nearly all are
of two CPU cores of a virtual machine: of what is compared to nothing, take the size and not the digits. **No figure is
of a GPU.** `make bench` measures the quick set on your machine, in ten minutes and without a network;
`make bench ARGS=--peers` beside the peers that are installed (`make peers`).
"""
PROFILE = """\
pythia-14m, 4 sequences of 512 tokens, one thread. The products are `_linear_pointwise`, `addmm_`, `mm` and `addmm`,
most of them with the output matrix; `_log_softmax` and `exp_` are the loss over 50,304 words. The optimizer is among
the others.
"""
DRAWINGS = """\
Both axes of a drawing double from line to line, and count from the least size: what grows as its axis does rises one
line with each, what does not grow lies flat. Faint is what is expected: operations by the formula of MFU, memory by the
plan's estimate, a line, or a constant. A slope is that of a straight line through the logarithms.
"""
AGREEMENT = """
### The agreement at 1,024 ranks

Messages one after the other, of which each takes 30 µs on the network, and as much CPU as with 64 ranks here, in every
tenth step, which has a number of each rank: {ours}; gloo's ring, which needs 2,046 of them: {ring}. On a GPU it is off
the critical path: the host agrees on the next step while the device works on this one
([0006](../decisions/0006-host-agreement.md)). Simulated; no run of 1,024 ranks was made.
"""


def benchmarks_page() -> Iterator[str]:
    goals: list[Goal] = yaml.safe_load((BENCHMARKS / "goals.yaml").read_text())
    yield f"# Benchmarks\n\n{OPENING}"
    for group, rows in itertools.groupby(goals, key=lambda goal: goal["group"]):
        yield f"\n## {group}\n\n| what | goal | measured | reached | script |\n|---|---|---|---|---|\n"
        for goal in rows:
            yield goal_row(goal)
    yield from quick_set(goals)
    yield "\n## Not reached, and why\n\n"
    for goal in goals:
        if goal.get("reached") is False:
            yield f"- {goal['what']}: {goal['why']}\n"
    yield from where_time_goes()
    yield from growth()


def goal_text(goal: Goal) -> str:
    word, bound = ("at most", goal["at_most"]) if "at_most" in goal else ("at least", goal["at_least"])
    return f"{word} {bound:,g} {goal['unit']}" if bound < 1e6 else f"{word} {bound / 1e6:,g}M {goal['unit']}"


def goal_row(goal: Goal) -> str:
    published = goal.get("published")
    measured = "not published yet"
    if published:
        measured = f"{published['value']} ([{published['file'][:10]}]({LINK}/results/{published['file']}))"
    reached = {True: "yes", False: "**no**", None: "–"}[goal.get("reached")]
    script = f"[{goal['script']}.py]({LINK}/{goal['script']}.py)"
    return f"| {goal['what']} | {goal_text(goal)} | {measured} | {reached} | {script} |\n"


def newest(kind: str) -> dict[str, Any] | None:
    files = sorted(RESULTS.glob(f"*-{kind}.json"))
    return dict(json.loads(files[-1].read_text())) if files else None


def about(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    busy = "" if found["load"] < 2 else ": other work ran beside it, which moves what is of the wall clock"
    return (
        f"{found['date']}, {found['machine']}, Python {found['python']}, {versions}, commit {found['commit']}: "
        f"`{found['command']}`; load {found['load']}{busy}.\n"
    )


def quick_set(goals: Sequence[Goal]) -> Iterator[str]:
    found = newest("quick")
    if found is None:
        return
    yield f"\n## The quick set, measured last\n\n{about(found)}\n"
    yield "| what | goal | median | least to most |\n|---|---|---|---|\n"
    for goal in goals:
        figure = found["figures"].get(goal["script"], {}).get(goal.get("figure"))
        if figure is not None:
            middle, low, high = figure
            yield f"| {goal['what']} | {goal_text(goal)} | {middle:,g} | {low:,g} to {high:,g} |\n"


def where_time_goes() -> Iterator[str]:
    found = newest("profile")
    if found is None:
        return
    yield f"\n## Where the time of a step goes\n\n{about(found)}\n{PROFILE}\n"
    yield "| operation | by itself |\n|---|---|\n"
    for name, share in found["shares"].items():
        yield f"| {name if ' ' in name else f'`{name}`'} | {share:.1%} |\n"


def growth() -> Iterator[str]:
    found = newest("growth")
    if found is None:
        return
    yield f"\n## How cost grows\n\n{about(found)}\n"
    yield DRAWINGS
    for name, axis in found["axes"].items():
        yield f"\n### {name.capitalize()}\n\n{axis['about']}\n\n![{name}]({LINK}/results/growth-{name}.svg)\n\n"
        yield "| what | slope | expected | | from the least to the most |\n|---|---|---|---|---|\n"
        yield from map(growth_row, axis["series"])
    seconds = found["agreement_of_1024_ranks_seconds"]
    yield AGREEMENT.format(**{name: milliseconds(**both) for name, both in seconds.items()})


def milliseconds(network: float, cpu: float) -> str:
    return f"{network * 1e3:.1f} ms on the network and {cpu * 1e3:.1f} ms of CPU"


def growth_row(series: dict[str, Any]) -> str:
    slopes = f"{series['slope']:.2f} | {series['expected']:.2f} | {series['verdict']}"
    ends = f"{measure(series['medians'][0], series['unit'])} to {measure(series['medians'][-1], series['unit'])}"
    sizes = f"at {series['sizes'][0]:,.0f} and {series['sizes'][-1]:,.0f}"
    note = f"; {series['note']}" if series["note"] else ""
    return f"| {series['name']} | {slopes} | {ends} {sizes}{note} |\n"


def measure(value: float, unit: str) -> str:
    """With a unit in which it is easy to read."""
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    scale, name = next(((s, n) for s, n in ((1, "s"), (1e-3, "ms")) if value >= s), (1e-6, "µs"))
    return f"{value / scale:.3g} {name}{unit.removeprefix('CPU s')} of CPU"
