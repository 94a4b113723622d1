"""The command as people type it: quick, light, right exit codes, and nothing created by a mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchyard.host.processes import end_marked
from launchyard.launcher.cli.main import COMMANDS, EXAMPLES, main
from launchyard.launcher.cli.schema import schema_text
from launchyard.launcher.recipe.bundled import recipe_folder
from launchyard.launcher.submit.launch import NewFolder
from launchyard.run.frozen import content_digest
from launchyard.run.records import EnvironmentRecord
from launchyard.run.rundir import RunDir
from launchyard.training.recipe import Recipe
from launchyard.training.spec import Workload
from tests.support.shell import Shell

HEAVY = {"torch", "numpy", "ray", "submitit", "s3fs", "rich", "transformers", "tokenizers"}
TEXT = "It is a truth universally acknowledged that a test needs some text.\n\n" * 200


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def text(shell: Shell) -> str:
    """A tiny recipe on a text of its own."""
    (shell.here / "text.txt").write_text(TEXT)
    tokenizer = recipe_folder() / "quickstart/tokenizer.json"
    recipe = {
        "name": "tiny",
        "model": {"family": "llama", "dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32, "max_seq_len": 32},
        "tokenizer": str(tokenizer),
        "data": {"source": "text.txt", "seq_len": 16, "validation": 0.1},
        "train": {"global_batch_size": 4, "max_steps": 4, "device": "cpu"},
        "metrics": {"prometheus": False},
    }
    (shell.here / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return "tiny.yaml"


# -- light and quick -------------------------------------------------------------------------------------------------
def imports_of(*words: str, cwd: Path) -> tuple[set[str], str]:
    code = (
        "import sys\n"
        "from launchyard.launcher.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print('\\n'.join(['IMPORTED', *sys.modules]))"
    )
    argv = [sys.executable, "-c", code, *words]
    out = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60).stdout
    said, _, names = out.partition("IMPORTED\n")
    return {name.split(".")[0] for name in names.splitlines()}, said


def test_help_imports_nothing_heavy_and_no_command(tmp_path: Path) -> None:
    code = (
        "import sys; from launchyard.launcher.cli.main import main\n"
        "try: main(['--help'])\nfinally: print('IMPORTED', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    imported = set(out.rpartition("IMPORTED")[2].split())
    assert not imported & {*HEAVY, "fsspec", "pydantic", "yaml", "psutil"}
    ours = {
        name
        for name in imported
        if name.startswith(("launchyard.launcher.", "launchyard.training", "launchyard.model", "launchyard.errors"))
    }
    ours -= {"launchyard.launcher.cli"}
    assert ours == {"launchyard.launcher.cli.main", "launchyard.errors", "launchyard.launcher.cli.completion"}


@pytest.mark.parametrize("words", [["quickstart", "--dry-run", "--json"], ["--local", "--dry-run"]])
def test_a_dry_run_imports_no_torch(words: list[str], tmp_path: Path) -> None:
    imported, said = imports_of(*words, cwd=tmp_path)
    assert "recipe" in said
    assert not imported & HEAVY


def test_help_is_quick(shell: Shell) -> None:
    """Generous, for loaded machines; benchmarks measure it."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert shell("--help").returncode == 0
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5


# -- help ------------------------------------------------------------------------------------------------------------
def test_help_names_every_command_and_option(shell: Shell) -> None:
    out = shell("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in out
    options = ("--cluster", "--local", "--nodes", "--gpus-per-node", "--name", "--run-url", "--dry-run", "--detach")
    for option in (*options, "--follow", "--json", "--version"):
        assert option in out
    for command, _ in EXAMPLES:
        assert command in out
    assert shell("quickstart", "--help").stdout == out == shell("-h").stdout


def test_version(shell: Shell) -> None:
    assert shell("--version").stdout.startswith("launchyard 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"Usage: launch {name}" in capsys.readouterr().out


# -- mistakes --------------------------------------------------------------------------------------------------------
MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "Usage: launch"),
    "a command misspelt": (["statsu"], "did you mean `launch status`?"),
    "a recipe misspelt": (["quickstrat"], "did you mean quickstart?"),
    "an option misspelt": (["quickstart", "--nods", "3"], "Did you mean '--nodes'?"),
    "no recipe": (["--cluster", "local", "train.max_steps=3"], "which recipe?"),
    "no such cluster": (["quickstart", "--cluster", "lokal"], "did you mean local?"),
    "two clusters": (["quickstart", "--local", "--cluster", "x"], "cannot go with"),
    "json and follow": (["quickstart", "--json", "--follow"], "cannot go with --follow"),
    "unknown key": (["quickstart", "train.lr=1"], "did you mean optimizer.lr?"),
    "wrong type": (["quickstart", "train.max_steps=many"], "must be a whole number"),
    "not KEY=VALUE": (["quickstart", "again"], "not KEY=VALUE"),
    "indivisible batch": (["quickstart", "train.global_batch_size=7", "resources.nproc_per_node=2"], "multiple of 2"),
    "vocabulary": (["quickstart", "model.vocab_size=100"], "the data's vocabulary has 2,048 ids"),
    "missing data": (["pretrain/pythia-14m"], "launch prepare"),
    "missing weights": (["quickstart", "model.init_from=nowhere"], "model.init_from"),
    "unwritable": (["quickstart", "--run-url", "/proc/none/run"], "cannot be written"),
    "below a file": (["quickstart", "--run-url", "full/file/run"], "cannot be written"),
    "a file": (["quickstart", "--run-url", "full/file"], "a file; it must be a new folder"),
    "not empty": (["quickstart", "--run-url", "full"], "not empty, and not a run"),
    "no such store": (["quickstart", "--run-url", "nosuch://b/run"], "cannot be reached"),
    "more GPUs": (["quickstart", "--gpus-per-node", "99"], "99 GPUs, but this machine has"),
    "more nodes": (["quickstart", "--nodes", "2"], "is this one machine; use 1"),
    "negative nodes": (["quickstart", "--nodes", "-1"], "--nodes"),
    "bad name": (["quickstart", "--name", "a/b"], "name=a/b on the command line"),
    "password": (["quickstart", "--run-url", "s3://me:s3cret@b/run"], "holds a password"),
    "no such shell": (["completion", "cmd"], "cmd"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_error(case: str, shell: Shell) -> None:
    """Exit code 2, no traceback, nothing created anywhere."""
    words, said = MISTAKES[case]
    (shell.here / "full").mkdir()
    (shell.here / "full/file").touch()
    before = shell.files()
    done = shell(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    if words:
        assert done.stdout == ""
        assert all(line.startswith(("error: ", "hint: ")) for line in done.stderr.splitlines())
    assert shell.files() == before


LACKING = {
    "numpy": (["prepare", "text.txt", "--tokenizer", "tokenizer.json", "--out", "o"], "'numpy>=1.26'"),
    "tokenizers": (["prepare", "text.txt", "--tokenizer", "tokenizer.json", "--out", "o"], "'tokenizers>=0.20'"),
    "submitit": (["tiny.yaml", "--cluster", "slurm", "--dry-run"], "'submitit>=1.5.2'"),
    "torch": (["tiny.yaml", "--detach"], "'torch>=2.11'"),
}


@pytest.mark.parametrize("package", LACKING)
def test_a_missing_package_is_one_sentence_and_the_command_that_works(package: str, shell: Shell, text: str) -> None:
    """It names packages: launchyard itself may be on no index, and need not be installed at all."""
    words, named = LACKING[package]
    (shell.here / "tokenizer.json").write_bytes((recipe_folder() / "quickstart/tokenizer.json").read_bytes())
    (shell.root / "block").mkdir()
    (shell.root / "block/sitecustomize.py").write_text(
        f"import sys, importlib.util as util\nsys.modules[{package!r}] = None\nfind = util.find_spec\n"
        f"util.find_spec = lambda name, *more: None if name == {package!r} else find(name, *more)\n"
    )
    path = os.pathsep.join(filter(None, [str(shell.root / "block"), os.environ.get("PYTHONPATH")]))
    done = shell(*words, PYTHONPATH=path, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "launchyard[" not in done.stderr
    error, hint = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert package in error
    assert hint.startswith(f"hint: {sys.executable} -m pip install ") and named in hint


def test_all_mistakes_of_a_file_at_once(shell: Shell) -> None:
    (shell.here / "bad.yaml").write_text("name: bad\nmodle: {}\ntrain: {max_steps: x}\n")
    done = shell("bad.yaml", "optimizer.lrr=3")
    assert done.returncode == 2
    said = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    assert [line.split(": ")[:2] for line in said] == [
        ["bad.yaml:1", "data"],
        ["bad.yaml:1", "model"],
        ["bad.yaml:2", "modle"],
        ["bad.yaml:3", "train.max_steps"],
        ["optimizer.lrr=3 on the command line", "optimizer.lrr"],
    ]


def test_data_and_plan_mistakes_come_together(shell: Shell) -> None:
    done = shell(
        "pretrain/pythia-14m", "train.global_batch_size=7", "--gpus-per-node", "0", "resources.nproc_per_node=2"
    )
    assert "data.source: " in done.stderr
    assert "train.global_batch_size: 7 sequences" in done.stderr


def test_debug_shows_the_traceback(shell: Shell) -> None:
    assert "Traceback" in shell("--debug", "quickstrat").stderr


# -- dry run ---------------------------------------------------------------------------------------------------------
def test_a_dry_run_does_without_data_that_is_not_there(shell: Shell) -> None:
    """The bundled recipe in a fresh clone: all that does not depend on the data, and the command that makes it."""
    words = ["pythia-1b", "--cluster", "slurm", "--nodes", "8"]
    done = shell(*words, "--dry-run", timeout=120)
    assert done.returncode == 0, done.stderr
    make = "launch prepare TEXT --tokenizer FILE --out"
    assert "#SBATCH --nodes=8" in done.stdout and "✓ data     not there yet" in done.stdout
    assert f"`{make} {shell.here}/data/pile`" in done.stdout
    plan = json.loads(shell(*words, "--dry-run", "--json", timeout=120).stdout)["plan"]
    assert (plan["world_size"], plan["max_steps"], plan["epochs"]) == (64, 143_052, [])
    assert not (shell.here / "data").exists()
    again = shell(*words, "--detach")
    assert again.returncode == 2 and make in again.stderr
    both = shell(*words, "--dry-run", "train.global_batch_size=7")
    assert both.returncode == 2 and make in both.stderr and "multiple of" in both.stderr


def test_a_dry_run_creates_nothing_and_tells_all(shell: Shell, text: str) -> None:
    before = shell.files()
    words = [text, "--dry-run", "--run-url", "some where/run;1", "--name", "other", "optimizer.lr=1e-3"]
    done = shell(*words)
    assert done.returncode == 0, done.stderr
    assert "lr: 0.001" in done.stdout
    assert "torchrun_process" in done.stdout
    assert "'some where/run;1'" not in done.stdout, "argv holds the whole path"
    assert f"'{shell.here}/some where/run;1'" in done.stdout, "quoted as a shell would need it"
    facts = json.loads(shell(*words, "--json").stdout)
    assert shell.files() == before
    assert set(facts) == {"schema_version", "source", "recipe", "code", "plan"}
    assert Recipe.model_validate(facts["recipe"]).name == facts["plan"]["name"] == "other"
    assert facts["plan"]["run_url"] == f"{shell.here}/some where/run;1"
    assert facts["plan"]["data_prepared"] is False
    owner = facts["plan"]["processes"][0]["argv"]
    assert owner[1:5] == ["-P", "-m", "launchyard.launcher.backends.local.owner", facts["plan"]["run_url"]]


# -- a real launch ---------------------------------------------------------------------------------------------------
def wait_for(run: RunDir, *, seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while (outcome := run.outcome()) is None:
        assert time.monotonic() < end, "the run does not end"
        time.sleep(0.1)
    return outcome


def test_a_launch_writes_what_it_planned_and_trains(shell: Shell, text: str) -> None:
    """The whole journey: text, tokens, plan, run directory, job, outcome; then what a second launch there says."""
    done = shell(text, "--json", "--run-url", "runs/one", timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    run = RunDir(facts["run_url"])
    try:
        outcome = wait_for(run)
        assert (outcome.outcome, outcome.step) == ("completed", 4), outcome
        assert run.read_json("plan.json") == {
            **facts["plan"],
            "recipe_xxh3": content_digest(run.read_bytes("recipe.yaml")),
        }
        assert facts["plan"]["data_prepared"] is True
        work = Workload.model_validate(facts["plan"])
        assert Path(work.data.train[0].folder, "index.json").exists()
        assert Path(run.path("tokenizer/tokenizer.json")).read_text() == Path(work.data.tokenizer or "").read_text()
        raw = yaml.safe_load(run.read_text("recipe.yaml"))
        assert raw["data"]["source"] == str(shell.here / "text.txt"), "whole paths: the run may be resumed elsewhere"
        assert run.read_json("code.json")["launchyard"]
        installed = EnvironmentRecord.model_validate(run.read_json("attempts/0000/environment.json"))
        assert installed.packages["torch"] == metadata.version("torch") and installed.torch and installed.system
        assert [row["step"] for row in run.rows("steps")] == [1, 2, 3, 4]
        before = shell.files()
        again = shell(text, "--run-url", "runs/one")
        assert again.returncode == 2
        assert f"holds a run already; go on with it: launch resume {run.url}" in again.stderr
        inside = shell(text, "--run-url", "runs/one", "train.max_steps=x")
        assert inside.returncode == 2
        assert shell.files() == before
        start = shell(text, "--dry-run", "--json", f"model.init_from={facts['run_id']}")
        assert json.loads(start.stdout)["recipe"]["model"]["init_from"] == run.url
    finally:
        end_marked(run.url)


def test_a_second_launch_of_a_living_run_names_it(shell: Shell, text: str) -> None:
    words = [text, "--json", "--run-url", "runs/one"]
    facts = json.loads(shell(*words, "train.max_steps=1000000", timeout=120).stdout)
    run = RunDir(facts["run_url"])
    try:
        again = shell(*words)
        assert again.returncode == 2
        job = facts["job"]
        assert f"this run is alive: attempt 0, process {job['pid']} on {job['host']}" in again.stderr
    finally:
        os.kill(facts["job"]["pid"], 9)
        end_marked(run.url)


def test_what_cannot_start_leaves_nothing(shell: Shell, text: str) -> None:
    """Text that turns out to be unusable while it is prepared: the run's folder is gone again."""
    (shell.here / "text.jsonl").write_text('{"other": "x"}\n')
    before = {name for name in shell.files() if not name.startswith("cache")}
    done = shell(text, "data.source=text.jsonl", "--run-url", "deep/er/run")
    assert done.returncode == 2, done.stderr
    assert {name for name in shell.files() if not name.startswith("cache")} == before


def test_a_run_is_recorded_before_it_is_started(shell: Shell, text: str) -> None:
    """Where that is not possible nothing is started: nobody would know the job."""
    (shell.root / "state/launchyard").mkdir(parents=True)
    (shell.root / "state/launchyard/runs").touch()
    done = shell(text, "--run-url", "deep/er/run", "--detach", timeout=120)
    try:
        assert done.returncode == 1
        assert (
            f"error: {shell.root}/state/launchyard/runs: this run cannot be recorded there: file exists" in done.stderr
        )
        assert "nothing was started" in done.stderr and "XDG_STATE_HOME" in done.stderr
        assert not (shell.here / "deep").exists()
    finally:
        end_marked(f"{shell.here}/deep/er/run")


def test_every_path_that_is_typed_may_begin_with_the_home(shell: Shell, text: str) -> None:
    """The shell leaves the ~ of `--out=~/x` and of KEY=~/x alone; no folder of that name is made."""
    (shell.root / "text.txt").write_text(TEXT)
    tokenizer = recipe_folder() / "quickstart/tokenizer.json"
    (shell.root / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (shell.root / "tiny.yaml").write_text((shell.here / text).read_text())
    made = shell("prepare", "~/text.txt", "--tokenizer=~/tokenizer.json", "--out=~/tokens", "--validation", "0.1")
    assert made.returncode == 0, made.stderr
    assert shell("inspect", "~/tokens").returncode == 0
    words = ["tokenizer=~/tokenizer.json", "--run-url=~/run", "--dry-run", "--json"]
    for source in ("~/tokens", "~/text.txt"):
        done = shell("~/tiny.yaml", f"data.source={source}", *words)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["plan"]["run_url"] == f"{shell.root}/run"
    assert not (shell.here / "~").exists()
    for words in (["data.source=$HOME/t"], ["--run-url=$HOME/r"], ["model.init_from=$X"], ["--cluster=$X/c.yaml"]):
        done = shell(text, *words, "--dry-run")
        assert done.returncode == 2
        assert "variables are not expanded" in done.stderr and "Traceback" not in done.stderr


def test_taking_back_touches_nothing_that_is_not_ours(tmp_path: Path) -> None:
    """Whatever has come into the folder meanwhile, and whatever should have kept us out of it, stays."""
    run = RunDir(str(tmp_path / "a/b"))
    made = NewFolder(run)
    made.ours = True
    run.write_text("plan.json", "{}")
    run.write_text("tokenizer/tokenizer.json", "{}")
    run.write_text("tokenizer/other", "x")
    run.write_text("folder/other", "x")
    made.discard()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"a/b/tokenizer/other", "a/b/folder/other"}


def test_an_empty_folder_may_be_there_and_stays(shell: Shell, text: str) -> None:
    (shell.here / "empty").mkdir()
    (shell.here / "text.jsonl").write_text('{"other": "x"}\n')
    assert shell(text, "data.source=text.jsonl", "--run-url", "empty").returncode == 2
    assert list((shell.here / "empty").iterdir()) == []


# -- editors and shells ----------------------------------------------------------------------------------------------
def test_the_schema_for_editors_is_current(shell: Shell) -> None:
    path = recipe_folder() / "recipe.schema.json"
    assert path.read_text() == schema_text("recipe"), "launch schema > recipes/recipe.schema.json"
    assert shell("schema").stdout == schema_text("recipe")


def test_the_schema_knows_what_bundled_recipes_use() -> None:
    schema = json.loads(schema_text("recipe"))
    for path in recipe_folder().rglob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) <= set(schema["properties"])
        target = path.read_text().split("$schema=")[1].split()[0]
        assert (path.parent / target).resolve() == (recipe_folder() / "recipe.schema.json").resolve()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(name: str, shell: Shell) -> None:
    done = shell("completion", name)
    assert done.returncode == 0
    assert "_LAUNCH_COMPLETE" in done.stdout
    if name == "bash":
        stub = 'launch() { printf \'plain,%s\\n\' "$COMP_LINE" max_steps=; }; env() { eval "$1"; launch; }; '
        ask = 'compopt() { :; }; COMP_LINE=launching; COMP_POINT=6; _launch_completion launch; echo "${COMPREPLY[*]}"'
        out = subprocess.run(["bash", "-c", f"{stub}{done.stdout}\n{ask}"], capture_output=True, text=True, check=True)
        assert out.stdout == "launch max_steps=\n", out


def complete(shell: Shell, *words: str) -> list[str]:
    out = shell(_LAUNCH_COMPLETE="bash_complete", COMP_LINE=" ".join(["launch", *words])).stdout
    return [entry.partition(",")[2] for entry in out.splitlines() if entry]


def test_completion(shell: Shell) -> None:
    (shell.here / "quick.yaml").touch()
    (shell.here / "folder").mkdir()
    assert complete(shell, "qu") == ["quickstart", "quick.yaml"]
    assert complete(shell, "res") == ["resume"]
    assert complete(shell, "pretrain/pythia-1") == ["pretrain/pythia-14m", "pretrain/pythia-160m"]
    assert complete(shell, "fol") == ["folder/"]
    assert "--dry-run" in complete(shell, "quickstart", "--d")
    assert complete(shell, "quickstart", "--cluster", "lo") == ["local"]
    assert complete(shell, "completion", "z") == ["zsh"]
    assert complete(shell, "quickstart", "train.prec") == ["train.precision="]
    values = complete(shell, "resume", "RUN", "train.precision=b")
    assert values == ["bf16", "bf16-true"], "bash replaces what follows the ="
    assert complete(shell, "help", "train.prec") == ["train.precision"]
