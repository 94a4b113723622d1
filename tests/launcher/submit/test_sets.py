"""Sets of held-out data at a launch and at a resume: moved they are found, changed they are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from launchyard.errors import LaunchError
from launchyard.launcher.submit.resume import make_ready
from launchyard.run.rundir import RunDir
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.spec import read_workload
from tests.launcher.submit.test_resume import RECIPE
from tests.support.shell import Shell


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, novel: str, tokenizer_file: str) -> Shell:
    """A shell where `run` has trained, with a prepared set, and one of text that the launch has prepared."""
    shell = Shell(tmp_path_factory.mktemp("sets"))
    for number, name in enumerate(("data", "made", "b", "text")):
        (shell.here / f"{name}.txt").write_text(novel[number * 50_000 : (number + 1) * 50_000])
    for name in ("data", "made", "b"):
        prepare([str(shell.here / f"{name}.txt")], tokenizer=tokenizer_file, out=str(shell.here / name))
    validation = {"sets": {"made": "made", "text": "text.txt"}, "every_epochs": 0.5}
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, "validation": validation}))
    shown = shell("tiny.yaml", "--dry-run")
    assert "validation made" in shown.stdout and "validation text" in shown.stdout, shown.stderr
    done = shell("tiny.yaml", "--run-url", "run", "train.max_steps=10")
    assert done.returncode == 0, done.stderr
    return shell


@pytest.fixture
def run(trained: Shell, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of `run`, with its data, where they were; prepared text is looked for where the shell has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", trained.env["XDG_CACHE_HOME"])
    kept = trained.root / "kept"
    if not kept.exists():
        shutil.copytree(trained.here, kept)
    shutil.rmtree(trained.here)
    shutil.copytree(kept, trained.here)
    return RunDir(str(trained.here / "run"))


def refused(run: RunDir, changes: dict[str, object], *said: str) -> None:
    with pytest.raises(LaunchError) as error:
        make_ready(run, {"train.max_steps": 12, **changes}).submit(report=print)
    shown = f"{error.value} {error.value.hint}"
    assert all(one in shown for one in said), shown
    assert run.attempts() == [0], "something was started"


def test_it_was_measured_whole_and_with_its_bytes(run: RunDir, trained: Shell) -> None:
    rows = list(run.rows("validation"))
    assert {row["set"] for row in rows} == {"made", "text"} and all(row["bits_per_byte"] > 0 for row in rows)
    shown = trained("status", "./run").stdout
    assert f"made {rows[-2]['loss']:.4f}, text {rows[-1]['loss']:.4f}" in shown
    assert "bits_per_byte" in trained("metrics", "./run", "--validation").stdout
    assert trained("report", "./run").returncode == 0


@pytest.mark.parametrize("key", ["validation.sets.made", "validation.sets"])
def test_a_set_that_has_moved(run: RunDir, trained: Shell, key: str) -> None:
    (trained.here / "made").rename(trained.here / "moved")
    refused(run, {}, f"{trained.here}/made/train: the tokens of this run are not there any more")
    place = str(trained.here / "moved")
    text = str(trained.here / "text.txt")
    changes = {key: {"made": place, "text": text} if key.endswith("sets") else place}
    ready = make_ready(run, {"train.max_steps": 12, **changes})
    assert ready.moved and [one.folder for one in ready.plan.data.sets["made"]] == [f"{place}/train"]
    assert ready.overrides["validation.sets.made"] == place
    assert any(change.effect == "the same tokens, in another place" for change in ready.changes)


def test_another_set(run: RunDir, trained: Shell) -> None:
    other = str(trained.here / "b")
    refused(run, {"validation.sets.made": other}, "validation.sets.made: other tokens lie there")
    refused(run, {"validation.sets.more": other}, "validation.sets.more", "this run was made with None")
    refused(run, {"validation.sets": {}}, "validation.sets.made: None on the command line")
    shutil.rmtree(trained.here / "made")
    shutil.copytree(trained.here / "b", trained.here / "made")
    refused(run, {}, f"{trained.here}/made/train: other tokens lie there now")


def test_a_prepared_text_that_has_gone_is_prepared_again(run: RunDir, trained: Shell) -> None:
    (folder,) = {one.folder for one in read_workload(run).data.sets["text"]}
    shutil.rmtree(Path(folder).parent)
    done = trained("resume", "./run", "train.max_steps=12")
    assert done.returncode == 0, done.stderr
    assert {row["set"] for row in run.attempt_rows("validation", 1)} == {"made", "text"}
