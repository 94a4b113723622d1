"""`launch tune` over trials of a made-up machine: what is tried, told, written and refused; one with real workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner

from launchyard.launcher.cli.main import main
from launchyard.launcher.trial.child import TrialLimits
from launchyard.launcher.trial.trial import TrialOutcome, TrialPlace, allowed_memory
from launchyard.launcher.tune import tune as module
from launchyard.storage.damage import JsonObject
from launchyard.training.trial.spec import Trial
from tests.support.shell import Shell
from tests.support.small_runs import RECIPE, write_data


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny.yaml and its tokens, whose global batch is 12."""
    shell = Shell(tmp_path)
    write_data(shell.here / "tokens")
    recipe = {**RECIPE, "data": {**RECIPE["data"], "source": "tokens/train", "validation": "tokens/validation"}}
    recipe |= {"validation": {"every_steps": 6}, "resources": {"nproc_per_node": 1}}
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(shell.here)
    return shell.here


class MadeUp:
    """In place of trials: so much room, and a speed that is best at micro-batches of 2."""

    def __init__(self, room: int = 100, diverges: bool = True) -> None:
        self.room = room
        self.diverges = diverges
        self.tried: list[Mapping[str, object]] = []
        self.limits: list[TrialLimits] = []

    def __call__(
        self,
        place: TrialPlace,
        changes: Mapping[str, object],
        trial: Trial,
        *,
        limits: TrialLimits,
        enough: Callable[[Sequence[JsonObject]], bool] = lambda rows: False,
    ) -> TrialOutcome:
        self.tried.append(changes)
        self.limits.append(limits)
        plan = place.ready({**changes, "train.max_steps": 9}, "/nonexistent/x").plan
        micro = plan.batch.micro_batch_size
        if micro > self.room:
            return TrialOutcome("no memory", plan, [], 10**9)
        rows: list[JsonObject] = []
        for step in range(trial.n_steps):
            lr = trial.lr(step) or 1e-3
            loss = 8 - 3 / (1 + (1e-3 / lr) ** 2) + (200 * lr if self.diverges else 0)
            speed = 1000.0 - 100 * abs(micro - 2)
            rows.append(
                {"step": step + 1, "lr": lr, "loss": loss, "tokens_per_second": speed, "step_seconds": 0.1 * micro}
            )
            if enough(rows):
                break
        return TrialOutcome("fits", plan, rows, 10**8 * micro, 10**8)


def typed(*words: str) -> tuple[int, str, str]:
    runner = CliRunner()
    with runner.isolation() as (out, err, _):
        try:
            main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return code, out.getvalue().decode(), err.getvalue().decode()


@pytest.fixture
def made_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    trials = MadeUp()
    monkeypatch.setattr(module, "run_trial", trials)
    return trials


def test_both_are_found_and_the_command_to_use_is_told(place: Path, made_up: MadeUp) -> None:
    made_up.room = 5
    before = (place / "tiny.yaml").read_bytes()
    code, out, _ = typed("tune", "tiny.yaml", "train.seed=4", "--out", "tuned")
    assert code == 0
    assert "largest that fits: 4 of those that divide the 12" in out and "fastest: 2" in out
    command = out.splitlines()[-1]
    assert command.startswith("use them: launch tiny.yaml train.seed=4 train.micro_batch_size=2 optimizer.lr=")
    assert (place / "tiny.yaml").read_bytes() == before
    rows = [json.loads(line) for line in (place / "tuned/tune.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"micro_batch", "lr", "result"}
    sizes = {row["micro_batch_size"]: row["verdict"] for row in rows if row["kind"] == "micro_batch"}
    assert sizes[4] == "fits" and sizes[6] == "no memory" and set(sizes) <= {1, 2, 3, 4, 6, 12}
    assert rows[-1]["overrides"]["optimizer.lr"] == float(command.rpartition("=")[2])
    drawing = ElementTree.parse(place / "tuned/learning-rates.svg").getroot()
    assert "1e-03" in {text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")}
    code, _, err = typed("tune", "tiny.yaml", "--out", "tuned")
    assert code == 2 and "holds tune.jsonl already" in err


def test_the_size_of_the_recipe_need_not_fit_the_batch_that_is_given(place: Path, made_up: MadeUp) -> None:
    recipe = yaml.safe_load((place / "tiny.yaml").read_text())
    recipe["train"]["micro_batch_size"] = recipe["train"]["global_batch_size"]
    (place / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    code, out, err = typed("tune", "tiny.yaml", "train.global_batch_size=8", "--micro-batch")
    assert code == 0 and "train.global_batch_size=8 train.micro_batch_size=2" in out, err
    code, _, err = typed("tune", "tiny.yaml", "train.global_batch_size=8", "--lr")
    assert code == 2 and "train.micro_batch_size" in err


def test_one_of_them_alone(made_up: MadeUp) -> None:
    code, out, _ = typed("tune", "tiny.yaml", "--lr", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {row["kind"] for row in rows} == {"lr", "result"} and len(made_up.tried) == 1
    assert len(rows) < 101, "it went on behind the divergence"
    assert set(rows[-1]["overrides"]) == {"optimizer.lr"}
    code, out, _ = typed("tune", "tiny.yaml", "--micro-batch", "--json")
    assert code == 0 and "optimizer.lr" not in out


def test_nothing_fits(made_up: MadeUp) -> None:
    made_up.room = 0
    code, out, _ = typed("tune", "tiny.yaml")
    assert code == 1 and "not even one sequence fits" in out and len(made_up.tried) == 1


def test_batches_are_whole_for_every_worker(made_up: MadeUp) -> None:
    typed("tune", "tiny.yaml", "--micro-batch", "resources.nproc_per_node=2")
    for changes in made_up.tried:
        micro = changes["train.micro_batch_size"]
        assert isinstance(micro, int) and 6 % micro == 0
        assert changes["train.global_batch_size"] == micro * min(6 // micro, 4) * 2


def test_larger_ones_are_not_tried_where_they_would_take_too_long(made_up: MadeUp) -> None:
    code, out, err = typed("tune", "tiny.yaml", "--micro-batch", "--timeout", "1")
    assert code == 0 and "not tried, its steps would take about" in err and "see --timeout" in out


def test_the_machine_keeps_a_margin(made_up: MadeUp) -> None:
    import psutil

    free = psutil.virtual_memory().available
    assert allowed_memory(None) < free - (400 << 20)
    assert allowed_memory(1 << 60) < free
    typed("tune", "tiny.yaml", "--micro-batch", "--memory", "1GB")
    assert {limits.memory for limits in made_up.limits} == {900_000_000}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "slurm"], "run it in an allocation"),
        (["--min-lr", "1", "--max-lr", "0.1"], "must be below"),
        (["train.nonsense=1"], "unknown key"),
        (["--memory", "much"], "is no size"),
        (["train.device=mps"], "the GPU of a Mac"),
        (["train.device=rocm"], "write cuda"),
    ],
)
def test_mistakes_start_nothing(made_up: MadeUp, words: list[str], said: str) -> None:
    code, _, err = typed("tune", "tiny.yaml", *words)
    assert code == 2 and said in err and made_up.tried == [] and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_real_workers_and_nothing_is_left(place: Path, workers: int) -> None:
    """Sizes that fit, one that does not, and a range test of the same recipe."""
    import psutil

    shell = Shell(place.parent / "person")
    wide = ["model.dim=512", "model.ffn_dim=2048", "data.seq_len=64", "train.global_batch_size=256"]
    few = ["--micro-batch", "--memory", f"{(900, 2200)[workers - 1]}MB", "--json", "--timeout", "60"]
    many = [str(place / "tiny.yaml"), f"resources.nproc_per_node={workers}"]
    done = shell("tune", *many, *wide, *few, timeout=600, TMPDIR=str(place))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    verdicts = [row["verdict"] for row in rows[:-1]]
    assert verdicts[0] == "fits" and rows[0]["tokens_per_second"] > 0, done.stderr
    assert rows[0]["peak_bytes"] > rows[0]["planned_bytes"]
    assert "no memory" in verdicts or "too slow" in verdicts
    done = shell("tune", *many, "--lr", "--steps", "40", "--max-lr", "100", "--json", timeout=600, TMPDIR=str(place))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and rows[-1]["divergence"] is not None, done.stderr
    assert not list(place.glob("launchyard-trial-*"))
    left = [one for one in psutil.process_iter(["cmdline"]) if str(place) in " ".join(one.info["cmdline"] or [])]
    assert not left
