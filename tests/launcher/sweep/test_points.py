"""What is typed and the points that it means: a grid, draws and rows, for any keys and values."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.sweep.points import MOST_POINTS, Range, draw_points, grid, parse_axes, read_points

values = st.lists(st.one_of(st.integers(), st.booleans(), st.text(max_size=3)), min_size=1, max_size=4)
axes = st.dictionaries(st.sampled_from(["a", "b", "c.d", "e"]), values, min_size=1, max_size=3)
bounds = st.tuples(st.floats(1e-6, 1.0), st.floats(1.1, 1e6))


# -- typed -------------------------------------------------------------------------------------------------------------
def test_a_list_is_several_values_and_anything_else_is_one() -> None:
    found = parse_axes(["lr=[1e-4,3e-4]", "train.max_steps=5", "optimizer.betas=[[0.9,0.95]]", "seed=int:1..8"])
    assert found.fixed == {"train.max_steps": 5}
    assert found.varied == {
        "optimizer.lr": [1e-4, 3e-4],
        "optimizer.betas": [[0.9, 0.95]],
        "train.seed": Range("int", 1, 8),
    }
    assert list(found.varied) == ["optimizer.lr", "optimizer.betas", "train.seed"], "in the order of the command line"


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "batch_size=[1,2]": "batch_size on the command line: unknown key; did you mean train.micro_batch_size?",
        "optimizer.lr=[]": "no value to try",
        "schedule.min_lr=log:0..1": "log needs numbers above 0",
        "model.dim=int:1..2.5": "int needs whole numbers",
        "train.seed=uniform:3..1": "the smaller number comes first",
        "data.seed=log:a..b": "a range lies between two numbers",
        "nothing": "not KEY=VALUE",
    }
    with pytest.raises(RecipeErrors) as error:
        parse_axes(list(wrong))
    assert len(error.value.problems) == len(wrong)
    for problem, words in zip(error.value.problems, wrong.values(), strict=True):
        assert words in problem
    with pytest.raises(RecipeErrors, match=r"optimizer\.lr on the command line: given twice"):
        parse_axes(["lr=[1,2]", "optimizer.lr=3"])


# -- grid --------------------------------------------------------------------------------------------------------------
@given(axes)
def test_a_grid_is_every_combination_once_with_the_last_key_fastest(varied: dict[str, list[object]]) -> None:
    points = grid(varied)
    assert [tuple(point[key] for key in varied) for point in points] == list(itertools.product(*varied.values()))
    assert all(list(point) == list(varied) for point in points)
    last = list(varied)[-1]
    n = len(varied[last])
    assert [point[last] for point in points[:n]] == varied[last]


def test_a_grid_has_bounds() -> None:
    assert len(grid({"a": list(range(MOST_POINTS))})) == MOST_POINTS
    with pytest.raises(UserError, match="40 x 40 = 1,600 points; a sweep has at most 1000"):
        grid({"a": list(range(40)), "b": list(range(40))})
    with pytest.raises(UserError, match="b: a range is drawn from"):
        grid({"a": [1], "b": Range("int", 1, 2)})


# -- draws -------------------------------------------------------------------------------------------------------------
@given(st.sampled_from(["log", "uniform", "int"]), bounds, st.floats(0, 1, exclude_max=True))
def test_a_draw_lies_in_its_range(kind: str, ends: tuple[float, float], share: float) -> None:
    low, high = (int(end) for end in ends) if kind == "int" else ends
    found = Range(kind, low, high).draw(share)
    assert low <= found <= high
    assert isinstance(found, int) == (kind == "int")


def test_draws_fill_their_range_evenly() -> None:
    shares = [n / 1000 for n in range(1000)]
    logs = [Range("log", 1e-4, 1e-2).draw(share) for share in shares]
    assert sum(value < 1e-3 for value in logs) == pytest.approx(500, abs=2)
    ints = [Range("int", 1, 4).draw(share) for share in shares]
    assert [ints.count(value) for value in (1, 2, 3, 4)] == [250] * 4


@given(st.integers(), st.integers(1, 8), st.integers(1, 8))
def test_more_draws_go_on_where_fewer_ended(seed: int, few: int, more: int) -> None:
    varied = {"a": Range("log", 1e-5, 1e-3), "b": [1, 2, 3], "c": Range("int", 1, 100)}
    points = draw_points(varied, few + more, seed)
    assert draw_points(varied, few, seed) == points[:few]
    assert len({json.dumps(point) for point in points}) == few + more


@given(st.integers())
def test_the_values_of_a_key_depend_on_no_other_key(seed: int) -> None:
    lr = Range("log", 1e-5, 1e-3)
    alone = [point["lr"] for point in draw_points({"lr": lr}, 5, seed)]
    beside = [point["lr"] for point in draw_points({"x": Range("uniform", 0, 1), "lr": lr}, 10, seed)]
    assert alone == list(dict.fromkeys(beside))[:5], "alone, none is drawn twice"


def test_draws_are_those_of_the_seed_for_ever() -> None:
    drawn = draw_points({"optimizer.lr": Range("log", 1e-5, 1e-3)}, 3, 0)
    assert [point["optimizer.lr"] for point in drawn] == [1.969e-05, 3.847e-05, 0.000126]
    with pytest.raises(UserError, match="--random 9: there are only 6 different points"):
        draw_points({"a": [1, 2, 3], "b": [True, False]}, 9, 0)


# -- rows --------------------------------------------------------------------------------------------------------------
ROWS = [
    {"optimizer.lr": 1e-4, "model.dim": 64},
    {"optimizer.lr": 3e-4, "optimizer.betas": [0.9, 0.99]},
    {"train.precision": "bf16", "parallel.compile": True},
]


def write_rows(folder: Path, rows: list[dict[str, object]]) -> list[Path]:
    """The same rows in each kind of file."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(keys)
        writer.writerows([[json.dumps(row[key]) if key in row else "" for key in keys] for row in rows])
    (folder / "rows.yaml").write_text(yaml.safe_dump(rows))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    return [folder / f"rows.{kind}" for kind in ("csv", "yaml", "jsonl")]


def test_every_kind_of_file_holds_the_same_points(tmp_path: Path) -> None:
    for path in write_rows(tmp_path, ROWS):
        assert read_points(str(path)) == ROWS
    nested = [{"optimizer": {"lr": 1e-4}, "model": {"dim": 64}}]
    (tmp_path / "nested.yaml").write_text(yaml.safe_dump(nested))
    assert read_points(str(tmp_path / "nested.yaml")) == ROWS[:1]
    (tmp_path / "short.csv").write_text("lr, dim\n1e-4, 64\n")
    assert read_points(str(tmp_path / "short.csv")) == ROWS[:1]


def test_files_of_rows_lie_beside_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"data.source": "texts"}\n{"data.source": "hf://some/set"}\n')
    monkeypatch.chdir("/")
    assert [row["data.source"] for row in read_points(str(tmp_path / "rows.jsonl"))] == [
        str(tmp_path / "texts"),
        "hf://some/set",
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rows.txt", "x", "must end in .yaml, .yml, .csv, .jsonl"),
        ("rows.yaml", "a: 1", "must be a list"),
        ("rows.yaml", "- a\n", "row 1: must be a mapping"),
        ("rows.yaml", "- a: 1\n  a: 2\n", "rows.yaml:2: 0.a: written twice"),
        ("rows.csv", "lr\n1,2\n", "rows.csv:2: has another number of cells"),
        ("rows.csv", "lr\n", "holds no rows"),
        ("rows.jsonl", '{"lr": 1}\n{\n', "rows.jsonl:2: not JSON"),
        ("rows.jsonl", "[1]\n", "rows.jsonl:1: must be an object"),
        (
            "rows.jsonl",
            '{"learning_rate": 1}\n',
            "rows.jsonl:1: learning_rate: unknown key; did you mean optimizer.lr?",
        ),
        ("nowhere.csv", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(name: str, text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_points(str(tmp_path / name))
    assert words in str(error.value)
