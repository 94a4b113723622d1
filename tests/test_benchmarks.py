"""Goals and figures of the benchmarks: words that are published stand in result files, and slopes are slopes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.test_house import ROOT

BENCHMARKS = ROOT / "benchmarks"
GOALS: list[dict[str, Any]] = yaml.safe_load((BENCHMARKS / "goals.yaml").read_text())
SCRIPTS = [path for path in sorted(BENCHMARKS.glob("*.py")) if "ArgumentParser(" in path.read_text()]


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the folder, which scripts import as their neighbour."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal["what"])
def test_a_goal_is_of_a_script_and_its_figure_of_a_file(goal: dict[str, Any]) -> None:
    assert ("at_most" in goal) != ("at_least" in goal)
    assert (BENCHMARKS / f"{goal['script']}.py").exists()
    if "published" in goal:
        text = (BENCHMARKS / "results" / goal["published"]["file"]).read_text()
        assert goal["published"]["words"] in " ".join(text.split())
        assert goal["published"]["value"] in goal["published"]["words"]
    assert ("published" in goal) == ("reached" in goal)
    assert (goal.get("reached") is False) == ("why" in goal), "say why it is not reached, and only then"


def test_every_script_is_in_the_list() -> None:
    listed = (BENCHMARKS / "README.md").read_text()
    assert [path.name for path in SCRIPTS if f"`{path.name}`" not in listed] == []


def test_a_figure_of_the_quick_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the words of its script, as far as they do not name a side."""
    quick = load("quick", monkeypatch)
    for goal in GOALS:
        if "figure" in goal:
            assert goal["script"] in quick.SCRIPTS
            words = [part for part in goal["figure"].replace(" / ", ", ").split(", ") if len(part) > 4]
            text = (BENCHMARKS / f"{goal['script']}.py").read_text()
            assert all(word in text or word in quick.MODULES for word in words), goal["figure"]


def test_what_is_told_is_heard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    results = load("results", monkeypatch)
    print("words")
    results.tell({"a step, s": [0.123456, 2.0]})
    told = capsys.readouterr().out
    assert results.heard_in(told) == {"a step, s": [0.1235, 2.0]}
    with pytest.raises(ValueError, match="tells no figures"):
        results.heard_in(told + "more words\n")


def test_the_table_knows_what_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = load("quick", monkeypatch)
    most = {"what": "a", "script": "start", "figure": "f", "at_most": 2.0, "unit": "s"}
    least = {"what": "b", "script": "start", "figure": "f", "at_least": 2.0, "unit": "s"}
    below, above = (
        [line.split()[-1] for line in quick.table([most, least], {"start": {"f": v}})] for v in ([1.0], [3.0])
    )
    assert (below[1:], above[1:]) == (["reached", "REACHED"], ["REACHED", "reached"])
    assert "NOT" in quick.table([least], {"start": {"f": [1.0]}})[1]


def test_only_peers_that_are_there_take_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick = load("quick", monkeypatch)
    monkeypatch.setattr(quick, "INSTALLED", tmp_path)
    monkeypatch.setattr(quick, "MODULES", {"litgpt": "no_such_module", "transformers": "json"})
    assert quick.peers_there() == {"transformers": None}
    (tmp_path / "litgpt").mkdir()
    assert quick.peers_there() == {"litgpt": tmp_path / "litgpt", "transformers": None}
    train, loader = quick.SCRIPTS["train"], quick.SCRIPTS["loader"]
    assert train.words([])[-1] == "hand"
    assert train.words(["litgpt"])[-1] == "hand,litgpt"
    assert "--peers" not in loader.words([])
    assert loader.words(["litdata"])[-2:] == ["--peers", "litdata"]


def test_a_newer_result_is_the_one_that_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    measured = importlib.import_module("measured")
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert list(measured.quick_set(GOALS)) == list(measured.growth()) == []
    for day, value in (("09", 0.5), ("10", 0.25)):
        told = {"date": day, "machine": "m", "python": "3", "versions": {}, "commit": "c", "command": "x", "load": 0.0}
        figures = {"start": {"launch --help": [value, value, value]}}
        (tmp_path / f"2026-12-{day}-quick.json").write_text(json.dumps({**told, "figures": figures}))
    assert "| 0.25 | 0.25 to 0.25 |" in "".join(measured.quick_set(GOALS))


def test_a_slope_is_the_power(monkeypatch: pytest.MonkeyPatch) -> None:
    growth = load("growth", monkeypatch)
    sizes = [1.0, 2.0, 8.0]
    assert growth.slope_of(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    steep = growth.Series("s", "CPU s", sizes, [[size**2] for size in sizes], sizes)
    assert growth.Fitted(steep).verdict == "steeper"
    drawn = growth.drawing("s", "sizes", [growth.Fitted(steep)])
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 3
    measured = [growth.Fitted(growth.Series("s", "CPU s", [2, 64], [[1.0], [6.0]], [1, 6])) for _ in range(2)]
    assert growth.agreement_at(1024, measured)["ours"] == {
        "network": pytest.approx(10 * growth.HOP_SECONDS),
        "cpu": 10.0,
    }
