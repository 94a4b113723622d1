"""`launch diff`: it shows what differs and nothing else, wherever the runs lie and whether they have ended."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from launchyard.errors import UserError
from launchyard.launcher.cli.main import cli
from launchyard.launcher.report.diff.curves import Comparison, compare_rows
from launchyard.launcher.report.terminal_chart import overlay
from launchyard.launcher.submit.code import take_snapshot
from tests.launcher.report.test_html import Page
from tests.monitoring.made import Made, preempted_twice
from tests.support.standin import RECIPE
from tests.support.store import Bucket


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def diff(*words: str) -> Result:
    return CliRunner().invoke(cli, ["diff", *words], standalone_mode=False, catch_exceptions=False)


def facts(*words: str) -> Any:
    return json.loads(diff(*words, "--json").stdout)


def made(folder: Path, run_id: str, steps: int = 20, *, alive: bool = False) -> Made:
    one = Made(folder, run_id)
    one.begin(alive=alive)
    one.steps(range(1, steps + 1))
    return one


def two(folder: Path, **keys: Any) -> tuple[Made, Made]:
    """Two runs that are alike, but for these keys in the second's recipe."""
    first, second = (made(folder, run_id) for run_id in ("tiny-aaaa", "tiny-bbbb"))
    recipe = json.loads(json.dumps(RECIPE))
    for key, value in keys.items():
        section, name = key.split("__")
        recipe.setdefault(section, {})[name] = value
    second.run.write_text("recipe.yaml", yaml.safe_dump(recipe))
    return first, second


def edit_row(one: Made, step: int, **values: Any) -> None:
    file = Path(one.run.path("metrics/steps-0000.jsonl"))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[step - 1] |= values
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


# -- what differs ----------------------------------------------------------------------------------------------------
def test_runs_that_are_alike(tmp_path: Path) -> None:
    two(tmp_path)
    done = diff("tiny-aaaa", "tiny-bbbb", "--exit-code")
    assert done.return_value == 0
    assert "recipe: the same" in done.stdout and "equal to the bit until step 20, the last" in done.stdout
    assert not facts("tiny-aaaa", "tiny-bbbb")["differs"]


def test_a_key_and_what_a_default_is(tmp_path: Path) -> None:
    """A key that only one recipe names is compared with the default of the other."""
    two(tmp_path, optimizer__lr=0.5, train__seed=0)
    found = facts("tiny-aaaa", "tiny-bbbb")
    assert [one["what"] for one in found["recipe"]] == ["optimizer.lr"]
    assert found["recipe"][0]["values"][1] == 0.5
    assert diff("tiny-aaaa", "tiny-bbbb").return_value == 0
    assert diff("tiny-aaaa", "tiny-bbbb", "--exit-code").return_value == 1


def test_the_changes_of_resumes(tmp_path: Path) -> None:
    """Those that one attempt has made and the next has taken back, too."""
    _, second = two(tmp_path)
    for value in (0.5, 3e-4):
        second.attempt += 1
        job = second.run.job(0).model_copy(update={"attempt": second.attempt, "overrides": {"optimizer.lr": value}})
        second.run.claim_attempt(job)
    (key,) = facts("tiny-aaaa", "tiny-bbbb")["recipe"]
    assert key["what"] == "optimizer.lr" and key["values"][0] == key["values"][1]
    assert key["changed_by_resume"] == [
        "b: 0.0003 → 0.5 from attempt 1 on",
        "b: 0.5 → 0.0003 from attempt 2 on",
    ]


def test_where_curves_part(tmp_path: Path) -> None:
    first, second = two(tmp_path)
    row = next(row for row in first.run.rows("steps") if row["step"] == 8)
    edit_row(second, 8, loss=math.nextafter(row["loss"], 9.0))
    edit_row(second, 12, loss=row["loss"] + 1, data_hash="f" * 16)
    (curves,) = facts("tiny-aaaa", "tiny-bbbb")["curves"]
    assert curves["equal_until"] == 7 and curves["loss"]["at_first"] == 8 and curves["loss"]["apart"] == 12
    assert curves["first_different"] == {"data_hash": 12, "lr": None, "loss": 8, "grad_norm": None}
    assert "equal to the bit until step 7" in diff("tiny-aaaa", "tiny-bbbb").stdout


def test_runs_in_a_store_and_under_way(tmp_path: Path, s3: Bucket) -> None:
    """Only the steps that both have are compared."""
    from launchyard.run.rundir import RunDir
    from launchyard.storage import files

    made(tmp_path, "tiny-aaaa", 20)
    going = made(tmp_path, "tiny-bbbb", 12, alive=True)
    url = f"{s3.url}/runs/tiny-bbbb"
    for path in Path(going.run.url).rglob("*"):
        if path.is_file():
            files.write(f"{url}/{path.relative_to(going.run.url)}", path.read_bytes())
    assert RunDir(url).exists("plan.json")
    for name in (url, "tiny-bbbb"):
        found = facts("tiny-aaaa", name)
        assert found["curves"][0]["equal_until"] == 12 and found["sides"][1]["step"] == 12


def test_a_recipe_beside_a_run(tmp_path: Path) -> None:
    made(tmp_path, "tiny-aaaa")
    recipe = {**RECIPE, "data": {"source": "data", "seq_len": 64}}
    Path("other.yaml").write_text(yaml.safe_dump(recipe))
    found = facts("latest", "other.yaml")
    assert [one["kind"] for one in found["sides"]] == ["run", "recipe"]
    assert [(one["what"], one["values"]) for one in found["recipe"]] == [("data.seq_len", [16, 64])]
    assert found["curves"] == [None] and found["results"]["steps"] == [20, None]


def test_mistakes(tmp_path: Path) -> None:
    made(tmp_path, "tiny-aaaa")
    with pytest.raises(UserError, match="no such run"):
        diff("tiny-aaaa", "nothing")
    with pytest.raises(Exception, match="name from 2 to 6"):
        diff("tiny-aaaa")


# -- code ------------------------------------------------------------------------------------------------------------
def git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *author, *words], check=True, capture_output=True)


def test_code_with_uncommitted_changes(tmp_path: Path) -> None:
    """The diff goes from the tree that one run had to that of the other, and leaves the repository as it was."""
    first, second = two(tmp_path)
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    file = repository / "model.py"
    file.write_text("one\ntwo\nthree\n")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    file.write_text("one\nTWO\nthree\n")
    first.run.write_json("code.json", take_snapshot(repository).model_dump())
    file.write_text("one\nTWO\nthree\nfour\n")
    (repository / "new.py").write_text("x")
    git(repository, "add", "model.py")
    git(repository, "commit", "-qm", "second")
    second.run.write_json("code.json", take_snapshot(repository).model_dump())
    before = sorted(repository.rglob("*"))
    found = facts("tiny-aaaa", "tiny-bbbb")
    (change,) = found["code_diffs"]
    lines = [line for line in change["text"].splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert lines == ["+four"] and change["note"] == "not tracked, and not compared: new.py"
    assert {"commit", "uncommitted changes"} <= {one["what"] for one in found["code"]}
    assert sorted(repository.rglob("*")) == before


# -- the page --------------------------------------------------------------------------------------------------------
def test_the_page(tmp_path: Path) -> None:
    """Whole in itself, with both curves, and without what a name could smuggle in."""
    preempted_twice(tmp_path)
    made(tmp_path, "tiny-<b>x", 30)
    done = diff("tiny-abcd", "tiny-<b>x", "--html", "d.html")
    text = Path("d.html").read_text()
    page = Page(text)
    assert "wrote d.html" in done.stdout
    assert "<b>" not in text and "tiny-<b>x" in page.words
    assert text.count('class="line"') >= 2 and "prefers-color-scheme: dark" in text
    assert not [tag for tag, values in page.tags if tag in ("script", "link") or "src" in values]


# -- numbers ---------------------------------------------------------------------------------------------------------
def rows_of(losses: list[float], tokens: int = 64) -> list[dict[str, object]]:
    return [{"step": n, "loss": loss, "tokens_seen": n * tokens} for n, loss in enumerate(losses, 1)]


LOSSES = st.lists(st.floats(0, 12), min_size=1, max_size=30)


@given(LOSSES, LOSSES)
def test_equal_until_is_a_common_prefix(first: list[float], second: list[float]) -> None:
    found = compare_rows(rows_of(first), rows_of(second))
    common = min(len(first), len(second))
    assert found.last_common_step == common
    assert first[: found.equal_until] == second[: found.equal_until]
    assert found.equal_until == common or first[found.equal_until] != second[found.equal_until]
    back = compare_rows(rows_of(second), rows_of(first))
    if found.loss is not None and back.loss is not None:
        assert found.loss.first == -back.loss.first and abs(found.loss.largest) == abs(back.loss.largest)


@given(st.floats(1, 9), st.floats(-1, 1), st.integers(2, 40))
def test_other_batches_are_compared_at_equal_tokens(level: float, slope: float, steps: int) -> None:
    """One line of loss over tokens, read in steps of two sizes, is no difference."""

    def line(tokens: int, n: int) -> list[dict[str, object]]:
        return rows_of([level + slope * step * tokens / 64 for step in range(1, n + 1)], tokens)

    found: Comparison = compare_rows(line(64, 2 * steps), line(128, steps))
    assert found.aligned_by == "tokens" and found.differs
    assert found.loss is None or abs(found.loss.largest) < 1e-9


def test_a_chart_has_each_curve_by_its_letter() -> None:
    lines = overlay([("a", [(1, 5.0), (10, 1.0)]), ("b", [(1, 5.0), (20, 4.0)])])
    body = "".join(line[10:] for line in lines[:-1])
    assert {"a", "b", "*"} <= set(body) and all(len(line) <= 74 for line in lines)
    assert not overlay([("a", [(1, 5.0), (10, 1.0)]), ("b", [(1, math.nan)])])
