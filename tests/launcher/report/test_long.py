"""Long and wide runs: commands that read their rows need little memory, and pages stay small whatever is in them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.launcher.report.history import read_story
from launchyard.launcher.report.html import report_page
from launchyard.run.rundir import RunDir
from launchyard.run.svg import CELL, MAX_DOTS, MAX_MARKS, Bar, Lane, Line, Mark, curve, timeline
from tests.launcher.report.long_runs import Size, cost_of, long_run

STEPS = 25_000
MOST_BYTES = 80e6  # of a process; held rows took 115 to 350 MB


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return long_run(tmp_path_factory.mktemp("long"), Size(STEPS))


@pytest.mark.parametrize(
    "words",
    [
        ("report", "RUN", "--out", "PAGE"),
        ("metrics", "RUN"),
        ("metrics", "RUN", "--json"),
        ("metrics", "RUN", "--phases"),
        ("why", "RUN"),
        ("fsck", "RUN"),
        ("diff", "RUN", "RUN"),
        ("status", "RUN", "--watch", "--json"),
    ],
    ids=" ".join,
)
def test_no_command_holds_the_rows(long: RunDir, tmp_path: Path, words: tuple[str, ...]) -> None:
    given = [{"RUN": long.url, "PAGE": str(tmp_path / "page.html")}.get(word, word) for word in words]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    cost = cost_of([sys.executable, "-m", "launchyard", *given], env)
    assert cost.code in (0, 1), cost.errors  # 1: fsck says that it was made by hand
    assert cost.peak_bytes < MOST_BYTES, f"{cost.peak_bytes / 1e6:.0f} MB for {STEPS} steps"


def test_a_page_of_many_of_everything_is_small(tmp_path: Path) -> None:
    """What Chromium takes long for is elements: 62,000 of them were 10 s."""
    many = Size(6000, attempts=60, ranks=64, saves=6000, validations=6000, parts=130)
    page = report_page(read_story(long_run(tmp_path, many)))
    assert len(re.findall(r"<\w", page)) < 12_000
    assert len(page) < 1_000_000
    for words in ("118 more parts", "48 earlier attempts", "The first 20 attempts are not drawn"):
        assert words in page


def xs(drawn: str, tag: str, name: str = "x") -> list[float]:
    return [float(x) for x in re.findall(rf'<{tag} [^>]*\b{name}="([\d.]+)"', drawn)]


def test_what_is_too_small_to_be_seen_shares_a_place() -> None:
    bars = [Bar(n, n + 0.1, "c0", f"piece {n}") for n in range(10_000)]
    marks = [Mark(n, f"save {n}") for n in range(10_000)]
    drawn = timeline([Lane("a", [Bar(0, 10_000, "c1", "all of it"), *bars], marks)], label="x", form=str)
    assert len(xs(drawn, "rect")) < 1040 / CELL + 2 and drawn.count('class="pin"') < 1040 / CELL / 2
    assert "more here" in drawn and "all of it" in drawn
    few = timeline([Lane("a", bars[:1], marks[:1])], label="x", form=str)
    assert "more here" not in few and len(xs(few, "rect")) == 1


def test_the_clock_begins_with_what_is_drawn() -> None:
    late = timeline([Lane("a", [Bar(900, 1000, "c0", "late")])], label="x", form="{:g} s".format)
    assert xs(late, "rect")[0] < 120, "at the left"
    assert ">900 s<" in late and ">0 s<" not in late


@pytest.mark.parametrize(("most", "what"), [(MAX_DOTS, "dots"), (MAX_MARKS, "marks")])
def test_many_hide_nothing(most: int, what: str) -> None:
    def drawn(count: int) -> str:
        points = [(float(n), n % 7.0) for n in range(count)]
        marks = [Mark(x, "resumed") for x, _ in points] if what == "marks" else []
        return curve([Line(points, "c0", "held out", dots=what == "dots")], label="x", marks=marks)

    count: Callable[[str], int] = (
        (lambda svg: svg.count("<circle")) if what == "dots" else (lambda svg: len(re.findall(r'y1="12\.0"', svg)))
    )
    assert count(drawn(most)) == most and count(drawn(most + 1)) == 0
