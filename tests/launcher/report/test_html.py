"""`launch report`: one page that is whole in itself, says what became of the run, and lets no secret out."""

from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, example, given
from hypothesis import strategies as st

from launchyard.errors import UserError
from launchyard.launcher.cli.main import cli
from launchyard.launcher.report.history import read_story
from launchyard.launcher.report.html import report_page, smooth
from launchyard.run.goodput import CAUSES
from launchyard.run.svg import Bar, Lane, Line, Mark, curve, stack, ticks, timeline
from tests.monitoring.made import Made, preempted_twice

VOID = {"meta", "br", "hr", "img", "link", "input"}


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def report(*words: str) -> Result:
    return CliRunner().invoke(cli, ["report", *words], standalone_mode=False, catch_exceptions=False)


class Page(HTMLParser):
    """Its words and tags; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(made: Made) -> tuple[str, Page]:
    text = report_page(read_story(made.run), why="It has completed.")
    return text, Page(text)


# -- the story -------------------------------------------------------------------------------------------------------
def test_the_story_of_two_preemptions(tmp_path: Path) -> None:
    story = read_story(preempted_twice(tmp_path).run)
    assert story.preemptions == 2 and [one.result for one in story.attempts] == ["preempted", "preempted", "completed"]
    assert [one.started_from for one in story.attempts] == [0, 40, 60]
    assert (story.steps.count, story.steps.first["step"], story.steps.last["step"]) == (100, 1, 100)
    assert [step for step, _ in story.steps.curves["loss"].points] == list(range(1, 101))
    causes = [[piece.cause for piece in one.pieces] for one in story.attempts]
    assert causes[0][:2] == ["start", "productive"]
    assert causes[1][0] == "down", "what came between two attempts stands before the later one"
    assert "recomputed" in causes[2] and "recomputed" not in causes[1]
    again = next(piece for piece in story.attempts[2].pieces if piece.cause == "recomputed")
    assert again.ended - again.began == pytest.approx(15 * 0.5, abs=0.01), "steps 61 to 75"


def test_pieces_lie_within_the_run_and_in_order(tmp_path: Path) -> None:
    story = read_story(preempted_twice(tmp_path).run)
    assert story.goodput is not None
    for one in story.attempts:
        whole = [piece for piece in one.pieces if piece.cause not in ("validation", "checkpoint_blocking")]
        assert all(left.ended <= right.began + 1e-9 for left, right in itertools.pairwise(whole))
        for piece in one.pieces:
            assert piece.cause in CAUSES
            assert story.goodput.since - 1e-6 <= piece.began <= piece.ended <= story.goodput.until + 1e-6


def test_a_run_that_has_done_nothing_yet(tmp_path: Path) -> None:
    made = Made(tmp_path, clock=time.time())
    assert "never" in report("tiny-abcd", "--out", "-").output or page_of(made)
    made.begin(alive=True)
    text, page = page_of(made)
    assert "running" in text and "Fewer than two steps" in "".join(page.words)


# -- the page --------------------------------------------------------------------------------------------------------
def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    text, page = page_of(preempted_twice(tmp_path))
    assert not re.search(r"https?://|@import|url\(", text), "nothing comes from a network"
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "img"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert len(text) < 200_000


def test_the_page_tells_what_matters(tmp_path: Path) -> None:
    said = " ".join(page_of(preempted_twice(tmp_path))[1].words)
    for words in (
        "tiny-abcd",
        "completed",
        "2 preemptions",
        "Goodput",
        "recomputed",
        "It has completed.",
        "pythia-14m",
    ):
        assert words in said
    assert "of 1,000" in said, "steps that were planned"


def test_drawings_are_xml_and_stay_inside(tmp_path: Path) -> None:
    text, _ = page_of(preempted_twice(tmp_path))
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawn) == 7, "loss, the same for a phone, three small ones, causes, attempts"
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert root.attrib["aria-label"]
        for rect in root.iter("rect"):
            assert -0.1 <= float(rect.attrib["x"]) <= width
            assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width + 1
        for one in root.iter("polyline"):
            for x, y in (map(float, place.split(",")) for place in one.attrib["points"].split()):
                assert 0 <= x <= width and 0 <= y <= height


def test_every_colour_is_there_in_light_and_in_dark(tmp_path: Path) -> None:
    text, _ = page_of(preempted_twice(tmp_path))
    light, dark = text.split("prefers-color-scheme: dark")
    used = set(re.findall(r"var\(--([\w-]+)\)", text)) - {"c"}
    for name in used | set(CAUSES):
        assert f"--{name}:" in light and f"--{name}:" in dark


@pytest.mark.parametrize("poison", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "]]>&<b>"])
def test_what_people_write_stays_text(tmp_path: Path, poison: str) -> None:
    made = Made(tmp_path)
    made.run.write_text("recipe.yaml", f"{made.run.read_text('recipe.yaml')}# {poison}\n")
    made.begin()
    made.steps(range(1, 5))
    made.end("failed", "error", 4, of_run=True, message=poison)
    text = report_page(read_story(made.run), why=poison)
    assert poison not in text
    assert not {tag for tag, _ in Page(text).tags} & {"script", "img", "b"}


def test_no_password_gets_out(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.run.write_text("recipe.yaml", "data: {source: 's3://me:hunter2@host/data'}\nname: x\n")
    made.begin()
    made.end("failed", "error", 0, of_run=True, message="https://u:hunter2@host/x refused")
    text = report_page(read_story(made.run), why="https://u:hunter2@host/x refused")
    assert "hunter2" not in text and "***" in text


def test_no_value_skips_the_escape_and_the_redaction(tmp_path: Path) -> None:
    made = preempted_twice(tmp_path)
    story = replace(read_story(made.run), plan={"cluster": "https://u:hunter2@host/x", "precision": "<b>"})
    text = report_page(story)
    assert "hunter2" not in text and "<b>" not in text and "on https://***@host/x" in text


# -- as it is typed --------------------------------------------------------------------------------------------------
def test_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preempted_twice(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "wrote tiny-abcd.html" in report("tiny").output
    assert (tmp_path / "tiny-abcd.html").read_text().startswith("<!doctype html>")
    assert report("tiny", "--out", "-").output.startswith("<!doctype html>")
    with pytest.raises(UserError, match="No such file"):
        report("tiny", "--out", "nowhere/page.html")


# -- drawings --------------------------------------------------------------------------------------------------------
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_are_few_round_and_inside(low: float, span: float, count: int) -> None:
    assume(span > abs(low) * 1e-6)
    high = low + span
    found = ticks(low, high, count)
    assert len(found) <= count * 2.6 + 2
    assert all(low - span * 1e-3 <= value <= high + span * 1e-3 for value in found)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True)), max_size=50))
@example([(0.0, 0.0), (5e-324, 0.0)])
def test_any_numbers_can_be_drawn(points: list[tuple[float, float]]) -> None:
    points = sorted((x, y) for x, y in points if not abs(y) > 1e30)
    svg = curve([Line(points, "c0"), Line(points, "c1", dots=True)], label="x", marks=[Mark(1.0, "m")])
    finite = [point for point in points if math.isfinite(point[1])]
    assert bool(svg) == (len(finite) >= 1)  # both lines have each point
    if svg:
        ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=400))
def test_a_smooth_line_stays_between_its_points(values: list[float]) -> None:
    drawn = smooth([(float(n), value) for n, value in enumerate(values)])
    assert len(drawn) == len(values)
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in drawn)
    assert drawn[0][1] == pytest.approx(values[0]) and drawn[-1][1] == pytest.approx(values[-1])


def test_a_smooth_line_does_not_lag() -> None:
    straight = [(float(n), 3.0 * n) for n in range(500)]
    assert all(y == pytest.approx(3.0 * x) for x, y in smooth(straight))


def test_bars_and_lanes_of_nothing() -> None:
    assert stack([("a", 0.0, "c0")], label="x") == "" and timeline([], label="x", form=str) == ""
    assert "one piece" in timeline([Lane("a", [Bar(0, 0, "c0", "one piece")])], label="x", form=str)
