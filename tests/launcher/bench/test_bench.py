"""`launch bench` over trials of a made-up machine: what is tried, compared, told and refused; one with real workers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from launchyard.errors import LaunchError
from launchyard.launcher.backends.calibrations import calibration_file, machine_name
from launchyard.launcher.backends.hardware import HostFacts, probe_host
from launchyard.launcher.bench import bench as module
from launchyard.launcher.bench.alternatives import Subject, alternatives, short_steps
from launchyard.launcher.bench.kinds import CHANGED_KINDS
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.trial.child import TrialLimits
from launchyard.launcher.trial.trial import TrialOutcome, TrialPlace
from launchyard.storage.damage import JsonObject
from launchyard.training.trial.spec import Trial
from tests.launcher.plan.test_planner import CPU, GPUS, SMALL, plan_of
from tests.launcher.tune.test_tune import typed
from tests.model.test_speed import machine
from tests.support.shell import Shell
from tests.support.small_runs import RECIPE, write_data


def calibrated() -> None:
    """Of one worker on all cores, so that no test has to measure this machine."""
    threads = probe_host(gpus=False).cpus
    path = calibration_file(machine_name(), threads=threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(machine(machine=machine_name(), threads=threads).model_dump_json())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny.yaml and its tokens, whose global batch is 12, in micro-batches of 4."""
    shell = Shell(tmp_path)
    write_data(shell.here / "tokens")
    recipe = {**RECIPE, "data": {**RECIPE["data"], "source": "tokens/train"}}
    recipe["train"] = {**RECIPE["train"], "micro_batch_size": 4, "precision": "fp32"}
    recipe["resources"] = {"nproc_per_node": 1}
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(shell.here)
    calibrated()
    return shell.here


class Machine:
    """In place of trials: fast where micro-batches are small, broken where it compiles; slower every time."""

    def __init__(self) -> None:
        self.tried: list[Mapping[str, object]] = []
        self.pace = 1.0
        self.takes = 0.0  # seconds
        self.stops_at: int | None = None

    def __call__(
        self, place: TrialPlace, changes: Mapping[str, object], trial: Trial, *, limits: TrialLimits
    ) -> TrialOutcome:
        self.tried.append(changes)
        time.sleep(self.takes)
        if len(self.tried) == self.stops_at:
            raise KeyboardInterrupt
        plan = place.ready({**changes, "train.max_steps": 9}, "/nonexistent/x").plan
        if changes.get("parallel.compile"):
            raise LaunchError("a trial of the recipe failed: no C++ compiler")
        if changes.get("parallel.activation_checkpointing") == "full":
            return TrialOutcome("no memory", plan, [])
        speed = self.pace * 4000 / plan.batch.micro_batch_size
        times = {"tokens_per_second": speed, "step_seconds": 192 / speed}
        rows: list[JsonObject] = [{**times, "labels": 192, "phases": {"forward_backward": 1.0}}] * trial.n_steps
        cpu = [192 / speed] * trial.n_steps
        return TrialOutcome("fits", plan, rows, 10**8, 10**7, cpu_seconds=cpu, tensors=10**6)


@pytest.fixture
def made_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine()
    monkeypatch.setattr(module, "run_trial", found)
    monkeypatch.setattr(module, "_in_use", lambda: 0.0)
    return found


def test_what_is_faster_is_told_as_keys_to_paste(place: Path, made_up: Machine) -> None:
    before = (place / "tiny.yaml").read_bytes()
    code, out, err = typed("bench", "tiny.yaml", "train.seed=4")
    assert code == 0, err
    assert "faster, × 2.00: launch tiny.yaml train.seed=4 train.micro_batch_size=2" in out
    assert "not measured: a trial of the recipe failed: no C++ compiler" in out
    assert "not measured: it does not fit into the memory" in out
    assert "by a calibration of this machine" in out and "MFU" in out and "1 MB of tensors" in out
    assert (place / "tiny.yaml").read_bytes() == before


def test_each_change_is_compared_with_the_recipe_beside_it(made_up: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that gets slower all the time ratios stay what they are."""
    steady = Machine()
    monkeypatch.setattr(module, "run_trial", lambda *args, **options: _slower(steady)(*args, **options))
    _, out, _ = typed("bench", "tiny.yaml", "--try", "micro-batch", "--json")
    ratios = {one["title"]: one["ratio"] for one in json.loads(out)["tried"]}
    assert ratios["micro-batch 2"] == pytest.approx(2.0, rel=0.05)
    own = [changes["train.micro_batch_size"] == 4 for changes in steady.tried]
    assert own[::2] == [True] * len(own[::2]) and not any(own[1::2])


def _slower(machine_: Machine) -> Machine:
    machine_.pace *= 0.9
    return machine_


def test_only_what_is_asked_for(made_up: Machine) -> None:
    _, out, _ = typed("bench", "tiny.yaml", "--alone", "--json")
    found = json.loads(out)
    assert found["tried"] == [] and len(made_up.tried) == 1 and found["own"]["tensor_bytes"] == 10**6
    assert found["own"]["planned_tokens_per_second"] > 0 and found["own"]["mfu"] > found["own"]["mfu_causal"]
    _, out, _ = typed("bench", "tiny.yaml", "--try", "data.seq_len=8", "--json")
    assert [one["changes"] for one in json.loads(out)["tried"]] == [{"data.seq_len": 8}]


def test_an_end_keeps_what_was_measured(made_up: Machine) -> None:
    made_up.stops_at = 4
    code, out, _ = typed("bench", "tiny.yaml")
    assert code == 130 and "micro-batch" in out and "interrupted" in out


def test_what_there_is_no_time_for_is_not_tried(made_up: Machine) -> None:
    made_up.takes = 0.5
    code, out, _ = typed("bench", "tiny.yaml", "--max-time", "1.2", "--try", "micro-batch")
    assert code == 0 and "no time was left" in out and len(made_up.tried) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which recipe"),
        (["tiny.yaml", "--try", "nonsense"], "use one of micro-batch"),
        (["tiny.yaml", "--try", "compile", "--alone"], "leave out one of them"),
        (["tiny.yaml", "--cluster", "slurm"], "run it in an allocation"),
        (["tiny.yaml", "train.nonsense=1"], "unknown key"),
    ],
)
def test_mistakes_of_the_user_start_nothing(made_up: Machine, words: list[str], said: str) -> None:
    code, _, err = typed("bench", *words)
    assert code == 2 and said in err and made_up.tried == [] and "Traceback" not in err


@pytest.mark.parametrize("host", [CPU, GPUS], ids=["cpu", "gpus"])
@pytest.mark.parametrize("changes", [{}, {"train__micro_batch_size": 1}, {"parallel__activation_checkpointing": "op"}])
def test_changes_are_plans_and_differ_from_the_recipe(host: HostFacts, changes: dict[str, object]) -> None:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    plan = plan_of(host=host, **changes)
    subject = Subject(load_recipe(SMALL, keys).recipe, plan, host)
    found = alternatives(subject, CHANGED_KINDS)
    assert {one.kind for one in found} >= {"checkpointing", "compile"}
    for one in found:
        short = {**keys, **short_steps(subject, one.changes)}
        other = plan_of(host=host, **{key.replace(".", "__"): value for key, value in short.items()})
        assert other.model_dump(exclude={"speed"}) != plan.model_dump(exclude={"speed"}) or one.kind == "compile"
        assert other.batch.global_batch_size <= plan.batch.global_batch_size


def test_real_workers_and_nothing_is_left_of_them(place: Path) -> None:
    found = _benched(place, "--alone")
    assert found["own"]["steps"] == 2 and found["own"]["tokens_per_second"]["median"] > 0
    assert found["own"]["tokens_per_cpu_second"] > 0 and found["own"]["tensor_bytes"] > 100_000


@pytest.mark.slow
def test_a_change_beside_the_recipe_with_real_workers(place: Path) -> None:
    found = _benched(place, "--try", "parallel.activation_checkpointing=full", "--try", "workers")
    assert found["own"]["steps"] >= 2 and found["tried"][0]["ratio"] > 0


def _benched(place: Path, *words: str) -> JsonObject:
    shell = Shell(place.parent / "person")
    folders = {"TMPDIR": str(place), "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    given = [str(place / "tiny.yaml"), *words, "--steps", "2", "--json", "--max-time", "150"]
    done = shell("bench", *given, timeout=170, **folders)
    assert done.returncode == 0, done.stderr
    assert not list(place.glob("launchyard-trial-*")) and not list(shell.here.glob("runs/*"))
    found: JsonObject = json.loads(done.stdout)
    return found
