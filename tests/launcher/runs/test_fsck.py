"""`launch fsck` finds what still reads well and is not what was written, and its repairs repair."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launchyard.launcher.runs.fsck import check_run
from launchyard.run.frozen import content_digest
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import LogEntry, read_manifest, sealed
from launchyard.training.data.dataset_spec import source_digest
from tests.run.test_old_runs import FIXTURE, PLACE
from tests.support.shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A place where `run` is intact, with all digests that a run has today."""
    shell = Shell(tmp_path)
    shutil.copytree(FIXTURE, shell.here, dirs_exist_ok=True)
    for path in shell.here.rglob("*"):
        if path.suffix in (".json", ".yaml") and path.name != "manifest.json":
            path.write_text(path.read_text().replace(PLACE, str(shell.here)))
    recipe = content_digest((shell.here / "run/recipe.yaml").read_bytes())
    data = json.loads((shell.here / "run/plan.json").read_text())["data"]
    for source in (*data["train"], *data["validation"]):
        source["digest"] = source_digest(source["folder"])
    change(shell, "plan.json", recipe_xxh3=recipe, data=data)
    digest = content_digest((shell.here / "run/plan.json").read_bytes())
    change(shell, "attempts/0000/job.json", plan_digest=digest, host="elsewhere", created=0.0)
    record_rows(shell)
    return shell


def record_rows(shell: Shell) -> None:
    """As if its checkpoints had been saved by a version that writes down digests of rows."""
    lines = (shell.here / "run/metrics/steps-0000.jsonl").read_bytes().splitlines(keepends=True)
    for folder in (shell.here / "run/checkpoints").glob("step-*"):
        manifest = read_manifest(str(folder))
        entry = LogEntry(lines=manifest.step, xxh3=content_digest(b"".join(lines[: manifest.step])))
        (folder / "manifest.json").write_text(sealed(manifest.model_copy(update={"rows": {"steps-0000": entry}})))


def change(shell: Shell, file: str, **values: object) -> None:
    path = shell.here / "run" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def found(shell: Shell) -> list[str]:
    return [str(problem) for problem in check_run(RunDir(str(shell.here / "run"))).problems]


def test_an_intact_run(shell: Shell) -> None:
    result = check_run(RunDir(str(shell.here / "run")))
    assert (result.problems, result.not_recorded) == ([], [])
    assert result.files > 12


def test_a_run_of_an_older_version_has_less_on_record(shell: Shell) -> None:
    change(shell, "attempts/0000/job.json", plan_digest="")
    change(shell, "plan.json", recipe_xxh3="")
    result = check_run(RunDir(str(shell.here / "run")))
    assert result.problems == []
    assert [link.partition(":")[0] for link in result.not_recorded] == ["plan.json", "recipe.yaml"]


def test_each_link_of_the_chain(shell: Shell) -> None:
    """All files below can be read, and each is named with the one that tells on it."""
    recipe = shell.here / "run/recipe.yaml"
    recipe.write_text(recipe.read_text() + "# changed\n")
    assert [line.partition(":")[0] for line in found(shell)] == ["recipe.yaml was changed after the launch"]
    change(shell, "plan.json", name="other")
    tokenizer = shell.here / "run/tokenizer/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    said = found(shell)
    assert said[0].startswith("plan.json was changed after the launch: its digest is not that in job.json")
    assert any(line.startswith("tokenizer/tokenizer.json is changed") for line in said)


def test_a_number_that_became_another_number(shell: Shell) -> None:
    """Its row can be read, has its step, and is valid."""
    rows = shell.here / "run/metrics/steps-0000.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    row = json.loads(lines[3])
    lines[3] = json.dumps({**row, "loss": row["loss"] + 0.25}) + "\n"
    rows.write_text("".join(lines))
    (said,) = found(shell)
    first = "metrics/steps-0000.jsonl is changed: its first 15 rows are not those that step 15 was saved with"
    assert said.startswith(first)


def test_rows_of_an_older_version_are_not_recorded(shell: Shell) -> None:
    for path in (shell.here / "run/checkpoints").glob("step-*/manifest.json"):
        manifest = read_manifest(str(path.parent))
        path.write_text(sealed(manifest.model_copy(update={"rows": {}})))
    result = check_run(RunDir(str(shell.here / "run")))
    assert result.problems == []
    assert any(link.startswith("metrics: ") for link in result.not_recorded)


def test_a_lost_row_is_made_again(shell: Shell) -> None:
    """The steps after the newest checkpoint before it are trained again, and nothing is wrong then."""
    rows = shell.here / "run/metrics/steps-0000.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:11] + lines[12:]))
    repair = "launch resume old-mj9u --from-step 10"
    assert found(shell) == [f"metrics has no rows of step 12; {repair}"]
    done = shell("fsck", "./run", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"] == [
        {"file": "metrics", "what": "has no rows of step 12", "repair": repair}
    ]


def test_data_gone_and_replaced(shell: Shell) -> None:
    shutil.rmtree(shell.here / "data/train")
    shutil.copytree(shell.here / "data/validation", shell.here / "data/train")
    shutil.rmtree(shell.here / "data/validation")
    assert [line.partition(";")[0] for line in found(shell)] == [
        f"{shell.here}/data/train holds other tokens than those of the plan",
        f"{shell.here}/data/validation is gone",
    ]


def test_a_checkpoint_gone(shell: Shell) -> None:
    shutil.rmtree(shell.here / "run/checkpoints/step-00000015")
    assert found(shell) == ["checkpoints/step-00000015 was saved, and is gone; launch resume old-mj9u --from-step 10"]


def test_a_damaged_checkpoint(shell: Shell) -> None:
    """The newest costs the steps since the one before; an older one costs nothing."""
    for step, repair in ((10, "step 15 is intact"), (15, "launch resume old-mj9u --from-scratch")):
        path = shell.here / f"run/checkpoints/step-000000{step}/0000-rank-00000.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert any(f"step-000000{step}/" in line and "it is cut" in line and repair in line for line in found(shell))
