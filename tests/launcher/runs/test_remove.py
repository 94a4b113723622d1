"""Removing runs: all of a run and nothing else, and nothing at all if one of several cannot be removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.host.folders import job_folder, log_folder, owner_log
from launchyard.launcher.cli.main import main
from launchyard.launcher.runs.registry import known_ids, register
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.storage import files
from tests.launcher.runs.test_find import claim, registered
from tests.support.standin import RECIPE

Remove = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Remove:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["rm", *words])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


def test_it_asks_then_removes_directory_and_entry(tmp_path: Path, rm: Remove) -> None:
    one, two = registered(tmp_path, "one-abcd", "two-abcd")
    claim(one, 0, alive=False)
    one.write_text(layout.manifest(10), "x" * 1000)
    code, _, err = rm("one")
    assert code == 2 and "add --yes" in err
    code, out, _ = rm("one", "two", "--dry-run")
    assert code == 0 and "one-abcd" in out and "kB" in out and "nothing was removed" in out
    assert known_ids() == ["one-abcd", "two-abcd"] and one.exists(layout.manifest(10))
    code, out, _ = rm("one-abcd", one.url, "--yes", "--json")
    assert code == 0
    [facts] = json.loads(out)
    assert facts["removed"] and facts["files"] == 4 and facts["bytes"] > 1000
    assert known_ids() == ["two-abcd"] and not os.path.exists(one.url) and two.exists(layout.PLAN)
    assert (tmp_path / "tokens").exists(), "prepared data is shared"
    code, out, _ = rm("latest", "--yes")
    assert code == 0 and known_ids() == [] and not os.path.exists(two.url)


def test_a_run_that_is_alive_stays_and_so_do_those_beside_it(tmp_path: Path, rm: Remove) -> None:
    one, two = registered(tmp_path, "one-abcd", "two-abcd")
    claim(two, 0, alive=True)
    code, _, err = rm("one", "two", "--yes")
    assert code == 2 and "launch cancel two-abcd" in err
    assert one.exists(layout.PLAN) and two.exists(layout.PLAN) and len(known_ids()) == 2


def test_links_are_not_followed(tmp_path: Path, rm: Remove) -> None:
    [run] = registered(tmp_path, "one-abcd")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").touch()
    for name in ("link", layout.CHECKPOINTS):
        os.symlink(tmp_path / "other", run.path(name))
    os.symlink(run.url, tmp_path / "to-run")
    code, _, err = rm(f"{tmp_path}/to-run", "--yes")
    assert code == 2 and f"a link to {run.url}" in err
    code, out, _ = rm("one", "--yes")
    assert code == 0 and "not the run's: link" in out
    assert not os.path.exists(run.url) and (tmp_path / "other/precious").exists()


def not_a_run(tmp_path: Path, run: RunDir) -> str:
    os.mkdir(tmp_path / "else")
    (tmp_path / "else/plan.json").write_text('{"terraform": 1}')
    return f"{tmp_path}/else"


def around_another(tmp_path: Path, run: RunDir) -> str:
    register("two-abcd", "two", run.path("two-abcd"))
    return "one"


def here(tmp_path: Path, run: RunDir) -> str:
    os.mkdir(run.path("metrics"))
    os.chdir(run.path("metrics"))
    return "one"


@pytest.mark.parametrize(
    ("case", "said"),
    [(not_a_run, "not certainly a run"), (around_another, "run two-abcd lies inside"), (here, "you are inside")],
)
def test_a_folder_with_more_than_a_run_stays(
    case: Callable[[Path, RunDir], str], said: str, tmp_path: Path, rm: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [run] = registered(tmp_path, "one-abcd")
    code, _, err = rm(case(tmp_path, run), "--yes")
    assert code == 2 and said in err
    assert run.exists(layout.PLAN)


def test_of_a_run_whose_directory_is_gone_the_entry_goes(tmp_path: Path, rm: Remove) -> None:
    one, two = registered(tmp_path, "one-abcd", "two-abcd")
    shutil.rmtree(one.url)
    shutil.copytree(two.url, one.url)  # another run has taken its place
    code, out, _ = rm("one-abcd", "--yes")
    assert code == 0 and "gone" in out
    assert known_ids() == ["two-abcd"] and one.exists(layout.PLAN)


def test_a_remote_run_goes_with_its_files_on_this_machine(tmp_path: Path, rm: Remove) -> None:
    [model] = registered(tmp_path, "one-abcd")
    run = RunDir("memory://bucket/far-abcd")
    for name in (layout.PLAN, layout.RECIPE):
        run.write_text(name, model.read_text(name).replace("one-abcd", "far-abcd"))
    run.write_text(layout.manifest(10), "{}")
    files.write("memory://bucket/other", b"x")
    register("far-abcd", "far", run.url)
    beside = [owner_log(run.url, log_folder()), f"{job_folder(run.url, log_folder())}/{layout.job_script(0)}"]
    for path in beside:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).touch()
    code, out, _ = rm("far", "--yes")
    assert code == 0 and "3 " in out
    assert files.listdir("memory://bucket") == ["other"]
    assert not any(map(os.path.exists, beside)) and known_ids() == ["one-abcd"]


def test_runs_that_start_from_it_are_named(tmp_path: Path, rm: Remove) -> None:
    one, two = registered(tmp_path, "one-abcd", "two-abcd")
    recipe = {**RECIPE, "model": {"init_from": one.path(layout.checkpoint_folder(10))}}
    two.write_text(layout.RECIPE, json.dumps(recipe))
    assert "two-abcd starts from its weights" in rm("one", "--dry-run")[1]
