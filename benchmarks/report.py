"""What it costs to read a long run: CPU seconds and peak memory of each command that reads its rows, over its steps.

    python benchmarks/report.py [--steps 10000,100000,1000000] [--attempts 1] [--ranks 1] [--browser] [--out FOLDER]

Each command is a process of its own, whose peak is the kernel's account of it (ru_maxrss). With --browser Chromium
opens the page that `launch report` has written, at 1280 and 400 pixels, and tells when it was loaded. Takes some
two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the made runs of the tests

from growth import slope_of  # noqa: E402
from results import about_machine, numbered  # noqa: E402

from tests.launcher.report.long_runs import Size, cost_of, long_run  # noqa: E402

COMMANDS: dict[str, tuple[str, ...]] = {
    "status": ("status", "RUN", "--json"),
    "status --watch": ("status", "RUN", "--watch", "--json"),
    "metrics": ("metrics", "RUN"),
    "metrics --jsonl": ("metrics", "RUN", "--jsonl"),
    "metrics --phases": ("metrics", "RUN", "--phases"),
    "why": ("why", "RUN"),
    "fsck": ("fsck", "RUN"),
    "diff": ("diff", "RUN", "RUN"),
    "report": ("report", "RUN", "--out", "PAGE"),
}
WIDTHS = (1280, 400)
SLOPES = ("cpu_seconds", "peak_bytes")


def cost(words: tuple[str, ...], env: dict[str, str]) -> dict[str, float]:
    """Of one command."""
    began = time.perf_counter()
    found = cost_of([sys.executable, "-m", "launchyard", *words], env)
    if found.code not in (0, 1):  # 1: fsck has found something
        raise RuntimeError(f"{' '.join(words)}: exit code {found.code}\n{found.errors}")
    wall = numbered(time.perf_counter() - began)
    return {"cpu_seconds": numbered(found.cpu_seconds), "wall_seconds": wall, "peak_bytes": found.peak_bytes}


def measured(size: Size, folder: Path, *, browser: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Each command of one run, and the pages."""
    run = long_run(folder, size)
    page = folder / "page.html"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env |= {name: str(folder / name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    for name, words in COMMANDS.items():
        yield name, cost(tuple({"RUN": run.url, "PAGE": str(page)}.get(word, word) for word in words), env)
    yield "page", {"bytes": page.stat().st_size}
    if browser:
        for width in WIDTHS:
            yield f"page, {width} px", {"loaded_seconds": numbered(loaded(page, width, folder))}


def loaded(page: Path, width: int, folder: Path) -> float:
    """Seconds from the beginning of the navigation until Chromium has loaded a page and laid it out."""
    from tests.model.serve.http.browser import fresh_tab, running_chromium

    with running_chromium(folder) as chromium, fresh_tab(chromium) as tab:
        tab.resize(width, 900)
        tab.ask("Page.navigate", url=page.as_uri())
        tab.wait("document.readyState == 'complete' && performance.getEntriesByType('navigation')[0].loadEventEnd > 0")
        tab.value("document.documentElement.getBoundingClientRect().height")  # laid out
        return float(tab.value("performance.now()")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="10000,100000,1000000", help="lengths of runs, by commas")
    parser.add_argument("--attempts", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--saves", type=int, default=1000, help="and as many validations")
    parser.add_argument("--browser", action="store_true", help="open the pages in Chromium")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    lengths = [int(one) for one in given.steps.split(",")]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for steps in lengths:
        size = Size(steps, given.attempts, given.ranks, saves=given.saves, validations=given.saves, parts=100)
        with tempfile.TemporaryDirectory() as folder:
            for name, facts in measured(size, Path(folder), browser=given.browser):
                found.setdefault(name, {})[str(steps)] = facts
                told = "  ".join(f"{key} {value:,.4g}" for key, value in facts.items())
                print(f"{steps:>10,}  {name:18} {told}", flush=True)
    slopes: dict[str, Any] = {}
    if len(lengths) > 1:
        for name in COMMANDS:
            of = {key: slope_of(lengths, [found[name][str(one)][key] for one in lengths]) for key in SLOPES}
            slopes[name] = {key: round(value, 2) for key, value in of.items()}
            print(f"{name:18} slopes: " + "  ".join(f"{key} {value}" for key, value in slopes[name].items()))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        about = about_machine(f"python benchmarks/report.py {' '.join(sys.argv[1:])}")
        facts = {**about, "found": found, "slopes": slopes}
        (given.out / f"{time.strftime('%F')}-report.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
