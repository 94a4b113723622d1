"""Words that people type, answered: help topics, words of other tools, keys typed as options, recipes from a pipe."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launchyard.errors import UserError
from launchyard.launcher.cli import typos
from launchyard.launcher.cli.main import COMMANDS, LAUNCH, main
from launchyard.launcher.cli.weights.find import find_model
from launchyard.launcher.recipe.bundled import recipe_folder
from launchyard.model.weights.source import find_source
from launchyard.storage.hub_cache import hub_advice

Said = Callable[..., tuple[int, str]]
QUICKSTART = recipe_folder() / "quickstart.yaml"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """The exit code of a command and all that it has printed."""
    for kind in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out + out.err

    return run


def test_help_is_also_a_command(said: Said) -> None:
    assert said("help") == said("--help")
    for words in (["resume"], ["sandbox", "up"]):
        code, text = said("help", *words)
        assert code == 0 and text.startswith(f"Usage: launch {' '.join(words)} ")
    assert said("version") == said("--version")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("train.max_steps", ["train.max_steps", "a whole number of at least 1", "Optimizer steps"]),
        ("checkpoint", ["checkpoint: ", "checkpoint.keep", "default: "]),
        ("lr", ["optimizer.lr"]),
    ],
)
def test_help_of_a_key(topic: str, expected: list[str], said: Said) -> None:
    code, text = said("help", topic)
    assert code == 0 and all(part in text for part in expected), text


MISTAKES = {
    "ls": "`launch status`",
    "rmm tiny": "`launch rm`",
    "train": "`launch RECIPE`",
    "help checkpoint.kep": "did you mean checkpoint.keep?",
    "help sandbox upp": "launch sandbox --help",
    "quickstart --train.max_steps 5": "write train.max_steps=5",
    "quickstart --train.max-steps=5": "write train.max_steps=5",
    "quickstart --lr 1e-3": "write optimizer.lr=1e-3",
    "quickstart train.max_steps 5": "write train.max_steps=5",
    "quickstart train.max_steps = 5": "write train.max_steps=5",
    "train.max_steps 5": "write train.max_steps=5",
    "quickstart tokenizer --dry-run": "write tokenizer=VALUE",
    "resume nothing --seed 3": "write train.seed=3",
    "status --lr": "No such option '--lr'",
    "quickstart name=latest --dry-run": "means the newest run",
    "quickstart schedule.warmup_steps=1.5 --dry-run": "neither a whole number of steps nor a share",
    "quickstart model.dim=130 --dry-run": "is not divisible by n_heads",
    "quickstart model.init_from=gpt2 --dry-run": "launch download gpt2",
    "pythja.yaml": "did you mean pythia.yaml?",
    "deep/mien": "did you mean deep/mine.yml?",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_answered_with_the_right_words(typed: str, said: Said) -> None:
    os.mkdir("deep")
    for name in ("pythia.yaml", "deep/mine.yml"):
        Path(name).touch()
    code, text = said(*typed.split())
    assert code == 2 and MISTAKES[typed] in text, text


def test_a_name_of_the_hub_is_not_fetched_unasked(said: Said) -> None:
    with pytest.raises(FileNotFoundError, match="launch download org/gpt2"):
        find_source("org/gpt2")
    with pytest.raises(UserError) as caught:
        find_model("gpt2")
    assert "launch download gpt2" in str(caught.value.hint)
    assert not hub_advice("/scratch/gpt2") and not hub_advice("a/b/c")


def test_every_synonym_leads_to_a_command() -> None:
    assert set(typos.SYNONYMS.values()) <= {*COMMANDS, LAUNCH.split()[1]}
    assert not set(typos.SYNONYMS) & set(COMMANDS)


def test_a_recipe_comes_through_a_pipe(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in it start at the working directory; a named pipe is what <(…) is."""
    text = QUICKSTART.read_text().replace("quickstart/", f"{QUICKSTART.parent}/quickstart/")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, out = said("-", "--dry-run")
    assert code == 0 and "recipe (standard input)" in out
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_text(text))
    writer.start()
    code, out = said("pipe", "--dry-run")
    writer.join()
    assert code == 0 and "recipe (pipe)" in out


def test_a_working_directory_that_is_gone_is_named(said: Said, tmp_path: Path) -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir(tmp_path / "gone")
    code, text = said(str(QUICKSTART), "--dry-run")
    assert code != 0 and "the working directory does not exist any more" in text and "Errno" not in text
