"""A resume believes nothing that it has not checked: data, frozen files and checkpoints are those of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.plan.warnings import checkpoints_at_once
from launchyard.launcher.runs.checkpoints import list_saved
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.runs.why import explain
from launchyard.launcher.submit import room
from launchyard.launcher.submit.changes import EFFECTS, FIXED, PLACES, SCHEDULE, flatten, is_within
from launchyard.launcher.submit.resume import make_ready
from launchyard.launcher.submit.run_data import record_moved
from launchyard.run.checkpoints import newest_checkpoint
from launchyard.run.rundir import RunDir
from launchyard.storage.errors import DamagedError
from launchyard.training.data.dataset_spec import open_dataset
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.recipe import Recipe
from launchyard.training.spec import read_workload
from tests.support.shell import Shell
from tests.support.small_runs import final_weights, history

RECIPE = {
    "name": "tiny",
    "model": {"family": "llama", "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 64, "max_seq_len": 64},
    "data": {"source": "data", "seq_len": 32},
    "train": {"global_batch_size": 8, "max_steps": 20, "device": "cpu"},
    "resources": {"nproc_per_node": 1, "max_failures": 1},
    "checkpoint": {"every_steps": 10},
    "metrics": {"prometheus": False},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, novel: str, tokenizer_file: str) -> Shell:
    """A shell where `run` has trained 20 steps of text `a`, and `other` with another seed; text `b` is prepared too."""
    shell = Shell(tmp_path_factory.mktemp("resume"))
    for name, text in (("data", novel[:150_000]), ("b", novel[150_000:300_000])):
        (shell.here / f"{name}.txt").write_text(text)
        prepare([str(shell.here / f"{name}.txt")], tokenizer=tokenizer_file, out=str(shell.here / name))
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    for name, seed in (("run", 1), ("other", 2)):
        done = shell("tiny.yaml", "--run-url", name, f"train.seed={seed}")
        assert done.returncode == 0, done.stderr
    return shell


@pytest.fixture
def run(trained: Shell) -> RunDir:
    """A copy of `run`, with its data, where they were."""
    kept = trained.root / "kept"
    if not kept.exists():
        shutil.copytree(trained.here, kept)
    shutil.rmtree(trained.here)
    shutil.copytree(kept, trained.here)
    return RunDir(str(trained.here / "run"))


def refused(run: RunDir, *said: str) -> None:
    with pytest.raises(LaunchError) as error:
        ready = make_ready(run, {"train.max_steps": 24})
        ready.submit(report=print)
    shown = f"{error.value} {error.value.hint}"
    assert all(one in shown for one in said), shown
    assert run.attempts() == [0], "something was started"


def test_other_tokens_under_the_same_path(run: RunDir, trained: Shell) -> None:
    shutil.rmtree(trained.here / "data")
    shutil.copytree(trained.here / "b", trained.here / "data")
    refused(run, f"{trained.here}/data/train: other tokens lie there now")


@pytest.mark.parametrize(
    ("name", "old", "new"), [("recipe.yaml", "seq_len: 32", "seq_len: 36"), ("plan.json", "2", "3")]
)
def test_a_changed_frozen_file(run: RunDir, name: str, old: str, new: str) -> None:
    path = Path(run.path(name))
    path.write_text(path.read_text().replace(old, new, 1))
    refused(run, f"{name} was changed after the launch")


def test_a_frozen_file_that_is_gone_or_none_of_ours(run: RunDir) -> None:
    recipe, plan = Path(run.path("recipe.yaml")), Path(run.path("plan.json"))
    kept = recipe.read_text()
    recipe.unlink()
    refused(run, f"{recipe} is gone", "put it back")
    recipe.write_text(kept)
    for content in ("[]", "null", "5"):
        plan.write_text(content)
        with pytest.raises(DamagedError, match="is damaged: it holds no JSON object"):
            make_ready(run, {"train.max_steps": 24})


def test_a_checkpoint_of_another_run(run: RunDir, trained: Shell) -> None:
    newest = trained.here / "run/checkpoints/step-00000020"
    shutil.rmtree(newest)
    shutil.copytree(trained.here / "other/checkpoints/step-00000020", newest)
    assert newest_checkpoint(run) == 10
    assert [one.label for one in list_saved(run)] == ["permanent", "foreign"]
    refused(run, f"{newest} is of another run, ", "--from-step 10")


def test_a_run_that_was_moved_is_known_by_its_id_again(run: RunDir, trained: Shell) -> None:
    """And a copy of it takes no name from it."""
    run_id = state_of(run).run_id
    shutil.copytree(run.url, trained.here / "copy")
    assert trained("resume", "./copy", "train.max_steps=21").returncode == 0
    assert json.loads(trained("status", run_id, "--json").stdout)["url"] == run.url
    shutil.move(run.url, trained.here / "moved")
    assert "is gone" in trained("status", run_id).stderr
    assert trained("resume", "./moved", "train.max_steps=21").returncode == 0
    assert json.loads(trained("status", run_id, "--json").stdout)["url"] == str(trained.here / "moved")


def test_the_newest_checkpoint_gone(run: RunDir, trained: Shell) -> None:
    shutil.rmtree(trained.here / "run/checkpoints/step-00000020")
    refused(run, "step 20 was saved", "is gone", "--from-step 10, or launch resume", "--from-scratch")
    why = explain(run)
    assert why.next == [f"launch resume {state_of(run).run_id} --from-step 10"], "the one that is not refused"
    assert "Step 20 was saved, and " in why.text and "is gone. The newest checkpoint is of step 10" in why.text


def test_all_checkpoints_gone(run: RunDir, trained: Shell) -> None:
    shutil.rmtree(trained.here / "run/checkpoints")
    refused(run, "step 20 was saved", "--from-scratch")
    why = explain(run)
    assert why.next == [f"launch resume {state_of(run).run_id} --from-scratch"]
    assert "There is no checkpoint; 20 steps are lost" in why.text


def test_an_attempt_that_nobody_watches_does_not_start_over_in_silence(run: RunDir, trained: Shell) -> None:
    """The worker's own check: an owner that goes on by itself asks no launcher."""
    from launchyard.launcher.backends.base import load_backend

    ready = make_ready(run, {"train.max_steps": 24})
    shutil.rmtree(trained.here / "run/checkpoints")
    load_backend("local").submit(run, ready.plan, ready.overrides)
    assert trained("logs", "-f", "./run").returncode == 0
    outcome = run.outcome()
    assert outcome is not None and outcome.outcome == "failed" and outcome.fatal
    assert "step 20 of this run was saved" in outcome.message


@pytest.mark.parametrize(
    ("flags", "start"), [(["--from-step", "10"], 10), pytest.param(["--from-scratch"], 0, marks=pytest.mark.slow)]
)
def test_going_back_on_purpose(run: RunDir, trained: Shell, flags: list[str], start: int) -> None:
    """It is exact, and what comes after it counts again."""
    before = history(run)
    weights = final_weights(run)
    done = trained("resume", "./run", *flags)
    assert done.returncode == 0, done.stderr
    assert run.starts() == {0: 0, 1: start}
    assert history(run) == before
    assert all((weights[key] == value).all() for key, value in final_weights(run).items())
    assert newest_checkpoint(run) == 20
    ready = make_ready(run, {"train.max_steps": 24})
    assert ready.state.checkpoint == 20


def test_there_must_be_a_checkpoint_to_go_back_to(trained: Shell, run: RunDir) -> None:
    done = trained("resume", "./run", "--from-step", "15", "--json")
    assert done.returncode == 2
    assert "no checkpoint of that step; allowed: 10, 20" in done.stderr
    assert not json.loads(trained("status", "./run", "--json").stdout).get("alive")


def test_equal_data_in_another_place(run: RunDir, trained: Shell) -> None:
    """It goes on from there, and so do all later attempts without a word."""
    shutil.move(trained.here / "data", trained.here / "moved")
    refused(run, "data/train: the tokens of this run are not there any more", "data.source=PLACE")
    done = trained("resume", "./run", "data.source=moved", "train.max_steps=24")
    assert done.returncode == 0, done.stderr
    assert run.job(1).overrides == {"data.source": str(trained.here / "moved"), "train.max_steps": 24}
    ready = make_ready(run, {"train.max_steps": 26})
    assert ready.plan.data == read_workload(run).data
    assert ready.plan.data.train[0].folder == str(trained.here / "moved/train")


def test_other_data_in_another_place(run: RunDir, trained: Shell) -> None:
    digests = [open_dataset(str(trained.here / name)).digest[:12] for name in ("data", "b")]
    with pytest.raises(UserError) as error:
        make_ready(run, {"train.max_steps": 24, "data.source": str(trained.here / "b")})
    assert all(digest in str(error.value) for digest in digests)
    assert not run.exists("data.json")


def test_a_damaged_note_of_the_place(run: RunDir, trained: Shell) -> None:
    """Naming the place again mends it."""
    Path(run.path("data.json")).write_text("{")
    refused(run, "data.json is damaged")
    ready = make_ready(run, {"train.max_steps": 24, "data.source": str(trained.here / "data")})
    record_moved(run, ready.plan.data)
    assert not make_ready(run, {"train.max_steps": 24}).moved


def test_changes_are_listed_with_their_effect(run: RunDir) -> None:
    """Old and new value of each key; nothing is recorded before it is submitted."""
    wanted = {"optimizer.lr": 0.001, "train.max_steps": 24, "checkpoint.every_steps": 4}
    ready = make_ready(run, wanted)
    assert [str(change) for change in ready.changes] == [
        "train.max_steps 20 → 24: stretches the schedule",
        "optimizer.lr 0.0003 → 0.001: trains otherwise from here on",
        "checkpoint.every_steps 10 → 4: leaves training as it is",
    ]
    assert ready.overrides == wanted
    constant = make_ready(run, {"schedule.name": "constant", "train.max_steps": 24})
    assert constant.changes[0].effect == "leaves training as it is"
    assert run.attempts() == [0]


def test_every_key_of_a_recipe_may_change_or_not() -> None:
    """A new key has to be put in one of the two tables."""
    recipe = {**RECIPE, "validation": {"sample": {"prompt": "x"}}}
    for key in flatten(Recipe.model_validate(recipe).model_dump()):
        allowed = [prefix for prefix in EFFECTS if is_within(key, prefix)]
        fixed = [prefix for prefix in FIXED if is_within(key, prefix)]
        assert allowed or fixed, key
        assert not (allowed and fixed) or key in (*PLACES, SCHEDULE, "optimizer.name", "optimizer.momentum"), key


def test_room_for_one_more_checkpoint(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its checkpoints hold counts as its own, for they are replaced; one more must fit beside them."""
    longer = {"train.max_steps": 40}
    ready = make_ready(run, longer)
    one = ready.plan.checkpoint_bytes
    held = sum(path.stat().st_size for path in Path(run.path("checkpoints")).rglob("*") if path.is_file())
    enough = checkpoints_at_once(ready.recipe, 40) * one - held

    def is_noted(free: int) -> bool:
        monkeypatch.setattr(room, "free_bytes", lambda folder: free)
        return any("there is room for" in note for note in make_ready(run, longer).plan.notes)

    assert held > one and not is_noted(enough) and is_noted(enough - 1)
    monkeypatch.setattr(room, "free_bytes", lambda folder: one - 1)
    with pytest.raises(UserError, match="one checkpoint takes"):
        ready.submit(report=print)
    assert run.attempts() == [0]
