"""The user's own file: checked before anything is queued, frozen into the run, taken anew only when it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.recipe import own_code
from launchyard.launcher.recipe.own_code import read_own_file
from launchyard.launcher.submit.resume import make_ready
from launchyard.launcher.submit.run_data import restore_data
from launchyard.run.rundir import RunDir
from launchyard.training.own.contract import CONTRACTS, TYPES, describe_code
from launchyard.training.recipe import recipe_of
from launchyard.training.spec import frozen_workload, place_of_data
from tests.support.shell import Shell
from tests.support.small_runs import write_data

RIGHT = """
from collections.abc import Callable
import torch
from torch import Tensor
from launchyard import RunEnd, StepDone, ValidationDone

FIGURES = ("accuracy", "margin")

def loss(
    model: Callable[[Tensor], Tensor], labels: torch.Tensor, *, tokens: "Tensor"
) -> tuple[Tensor, dict[str, Tensor]]: ...
def optimizer(named_parameters: list[tuple[str, torch.nn.Parameter]], lr: float) -> torch.optim.Optimizer: ...
def batches(sample_numbers: list[int], seq_len: int) -> list[list[int]]: ...
def on_step(row: StepDone) -> dict[str, float] | None: ...
def on_validation(row: ValidationDone): ...
def on_end(run: RunEnd) -> None: ...
def _own(anything, *args): ...
class Helper: ...
"""


def test_a_file_is_described_without_being_run() -> None:
    found = describe_code(RIGHT.encode(), "mine.py")
    assert found.functions.keys() == CONTRACTS.keys()
    assert found.functions["loss"] == ("model", "labels", "tokens") and found.figures == ("accuracy", "margin")


def test_every_parameter_has_words_for_people() -> None:
    for name, contract in CONTRACTS.items():
        assert TYPES[name].keys() == {*contract.parameters, "return"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def los(model): ...", "mine.py:1: los is no function that a run calls; did you mean loss?"),
        ("\n\ndef on_step(rwo): ...", "mine.py:3: on_step: no parameter rwo; did you mean row?; allowed: row"),
        ("def loss(tokens): ...", "loss must ask for model"),
        ("def loss(model, tokens: int): ...", "tokens is annotated int, and is a torch.Tensor"),
        ("def on_end(run) -> dict[str, float]: ...", "annotated to return dict[str, float]; it returns None"),
        ("def on_step(*rows): ...", "takes * or /"),
        ("async def on_step(row): ...", "is async"),
        ("def on_step(row): ...\ndef on_step(row): ...", "is defined 2 times"),
        ("x = 1", "holds none of the functions"),
        ("def on_step(row) ...", "no Python"),
        ("FIGURES = ['a']\ndef on_step(row): ...", "there is no loss"),
        ("FIGURES = [name()]\ndef loss(model): ...", "a plain list of names"),
        ("FIGURES = ['grad_norm']\ndef loss(model): ...", "a name of the rows already"),
        ("FIGURES = ['a b']\ndef loss(model): ...", "'a b' is no name"),
    ],
)
def test_what_is_told_with_its_line(source: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        describe_code(source.encode(), "mine.py")
    assert message in str(error.value) and str(error.value).startswith("mine.py:")


def test_it_is_run_once_with_its_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(source: str) -> str:
        (tmp_path / "mine.py").write_text(source)
        with pytest.raises(RecipeErrors) as error:
            read_own_file("mine.py", base=str(tmp_path), where="code", tries=True)
        return f"{error.value} {error.value.hint}"

    hook = "\ndef on_step(row): ...\n"
    said = problem(f"import lib_beside{hook}")
    assert f"{tmp_path}/mine.py:1: ModuleNotFoundError: No module named 'lib_beside'" in said and "go with it" in said
    (tmp_path / "lib_beside.py").write_text("x = 1 / 0\n")
    assert "lib_beside.py:1: ZeroDivisionError" in problem(f"import lib_beside{hook}")
    assert "mine.py:1: ZeroDivisionError" in problem(f"x = 1 / 0{hook}")
    monkeypatch.setattr(own_code, "TRY_SECONDS", 0.5)
    assert "was not read in 0 s" in problem(f"import time; time.sleep(30){hook}")
    with pytest.raises(RecipeErrors, match="no such file"):
        read_own_file("none.py", base=str(tmp_path), where="code", tries=True)


RECIPE = {
    "name": "own",
    "model": {
        "family": "llama",
        "dim": 32,
        "n_layers": 1,
        "n_heads": 2,
        "ffn_dim": 64,
        "vocab_size": 97,
        "max_seq_len": 16,
    },
    "code": "mine.py",
    "data": {"seq_len": 16},
    "train": {"max_steps": 2, "global_batch_size": 4, "device": "cpu"},
    "resources": {"nproc_per_node": 1, "max_failures": 0},
    "metrics": {"prometheus": False},
}
STEPS = "BY = 1\n"
COUNTING = (
    "import steps\n\n"
    "def batches(sample_numbers, seq_len, vocab_size):\n"
    "    return [[(n + i * steps.BY) % vocab_size for i in range(seq_len + 1)] for n in sample_numbers]\n"
)


@pytest.mark.slow
def test_a_resume_runs_the_same_bytes_and_takes_new_ones_only_by_name(tmp_path: Path) -> None:
    """Typed, with real workers, beside a recipe in another folder, with a module and held-out data that move."""
    shell = Shell(tmp_path)
    folder = shell.here / "sub"
    folder.mkdir()
    (folder / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "mine.py").write_text(COUNTING)
    (folder / "steps.py").write_text(STEPS)
    for name, n_tokens in (("held", 200), ("others", 190)):
        write_data(folder / name, n_tokens=n_tokens)
    refused = shell("sub/own.yaml", "--run-url", "run", "parallel.tp=1", "data.source=x")
    assert refused.returncode == 2 and "takes its place" in refused.stderr and not (shell.here / "run").exists()
    done = shell("sub/own.yaml", "--run-url", "run", "data.validation=held/train", timeout=120)
    assert done.returncode == 0 and "batches; with steps.py" in done.stdout, done.stderr
    run = RunDir(str(shell.here / "run"))
    frozen = str(yaml.safe_load(run.read_text("recipe.yaml"))["code"])
    assert run.listdir("own_code") == [Path(frozen).stem, Path(frozen).name] and run.read_text(frozen) == COUNTING
    assert run.read_json("code.json")["own"]["functions"] == ["batches"]
    (folder / "steps.py").write_text(STEPS.replace("1", "2"))
    (folder / "held").rename(folder / "moved")
    place = f"data.validation={folder}/moved/train"
    again = shell("resume", "run", "train.max_steps=4", place, timeout=120)
    assert again.returncode == 0 and "is another by now" in again.stdout, again.stderr
    (folder / "mine.py").write_text(COUNTING + "\ndef on_step(row):\n    return {'new': row.step}\n")
    taken = shell("resume", "run", "train.max_steps=6", "code=sub/mine.py", timeout=120)
    assert taken.returncode == 0 and "trains otherwise from here on" in taken.stdout, taken.stdout
    figures = [(row.get("figures") or {}).get("new") for row in run.rows("steps")]
    assert figures == [None] * 4 + [5.0, 6.0]
    with pytest.raises(UserError, match=r"data.validation: other tokens lie there \(190 tokens"):
        make_ready(run, {"data.validation": f"{folder}/others/train", "train.max_steps": 8})
    with pytest.raises(UserError, match=r"data.source: batches of your own code takes its place"):
        make_ready(run, {"data.source": f"{folder}/others", "train.max_steps": 8})
    (folder / "mine.py").write_text("def on_step(row): ...\n")
    with pytest.raises(RecipeErrors, match="has batches of its own"):
        make_ready(run, {"code": str(folder / "mine.py"), "train.max_steps": 8})
    (folder / "moved").rename(folder / "gone")
    with pytest.raises(UserError, match="not there any more") as error:
        restore_data(recipe_of(run, 2), place_of_data(run, frozen_workload(run)))
    assert "data.validation=PLACE" in str(error.value.hint)
