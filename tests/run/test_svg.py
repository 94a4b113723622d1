"""loss.svg: whole in itself, for any viewer, with round numbers on its axes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.run.svg import Point, loss_svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(train: list[Point], validation: list[Point], title: str = "tiny: loss") -> ElementTree.Element:
    return ElementTree.fromstring(loss_svg(train, validation, title=title))


def axes(root: ElementTree.Element) -> list[float]:
    return [float(text.text or "") for text in root.iter(f"{SVG}text") if text.get("class") == "tick"]


def test_ticks_are_round_numbers() -> None:
    train = [(float(step), 10.8317 - 7.137 * step / 477) for step in range(1, 478)]
    found = axes(drawn(train, [(200.0, 8.1234)]))
    assert len(found) >= 8
    for value in found:
        digits = re.sub(r"^0+|0+$", "", f"{value:g}".replace(".", ""))
        assert len(digits) <= 2, f"{value} is not round"
    assert {4, 6, 8, 100, 200, 300, 400} <= set(found)


@pytest.mark.parametrize("last", [3, 7, 40, 1_500_000])
def test_steps_are_whole_and_written_out(last: int) -> None:
    root = drawn([(1.0, 3.0), (float(last), 2.0)], [])
    labels = [text.text or "" for text in root.iter(f"{SVG}text") if text.get("class") == "tick"]
    steps = [label for label in labels if label not in {f"{value:g}" for value in ticks(1.9, 3.1, 6)}]
    assert steps and all(re.fullmatch(r"[\d,]+", label) for label in steps), steps
    assert len(set(steps)) == len(steps)


def test_the_file_stands_alone() -> None:
    text = loss_svg([(1.0, 2.0), (2.0, 1.0)], [(2.0, 1.5)], title="<a> & b")
    assert "var(" not in text and "script" not in text and "url(" not in text
    assert len(list(ElementTree.fromstring(text).iter(f"{SVG}polyline"))) == 2
    assert "<a>" not in text and "&lt;a&gt; &amp; b" in text


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(allow_nan=True, allow_infinity=True)), max_size=40))
def test_numbers_that_are_none_are_left_out(points: list[Point]) -> None:
    points = sorted((x, y) for x, y in points if not 1e30 < abs(y) < math.inf)
    text = loss_svg(points, points[-1:], title="x")
    assert bool(text) == any(math.isfinite(y) for _, y in points)
    if text:
        ElementTree.fromstring(text)
        assert "nan" not in text and "inf" not in text


@pytest.mark.parametrize("steps", [1, 2, 30_000])
def test_any_length(steps: int) -> None:
    text = loss_svg([(float(step), 1.0 / step) for step in range(1, steps + 1)], [], title="x")
    assert text and len(text) < 30_000
