"""Names of the hub wherever a MODEL is typed: found in the local cache, without a network."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from launchyard import load
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.main import cli, main
from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf_export import save_hf
from launchyard.training.data.index import find_tokenizer
from tests.support.tiny_models import byte_tokenizer, neox, random_model, weights_of

CONFIG = neox(vocab_size=300, padded_vocab_size=384)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the cache, and a working directory without one."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "hf/hub/models--org--tiny"
    snapshot = folder / "snapshots" / COMMIT
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json", vocab_size=300)
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(snapshot), companions=companions_beside(tokenizer))
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return snapshot


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_downloaded_model_is_a_model(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("org/tiny").source.folder == load(f"org/tiny@{COMMIT[:9]}").source.folder == str(snapshot)
    assert find_tokenizer("org/tiny") == f"{snapshot}/tokenizer.json"
    code, out, err = launch(capsys, "generate", "org/tiny", "--prompt", "a", "--max-new-tokens", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["model"] == str(snapshot)
    code, _, err = launch(capsys, "export", "org/tiny", "--out", "out")
    assert code == 0, err
    assert os.path.exists("out/model.safetensors")


def test_a_local_folder_of_that_name_wins(snapshot: Path) -> None:
    shutil.copytree(snapshot, "org/tiny")
    assert load("org/tiny").source.folder == "org/tiny"


def test_one_that_is_not_there_names_the_command(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ("generate", "org/none", "--prompt", "a"),
        ("export", "org/none", "--out", "out"),
        ("quickstart", "--dry-run", "model.preset=null", "model.init_from=org/none"),
    ):
        code, _, err = launch(capsys, *words)
        assert code == 2 and "`launch download org/none`" in err, err
    Path("text.txt").write_text("some text " * 999)
    for words in (
        ("prepare", "text.txt", "--out", "tokens", "--tokenizer", "org/none"),
        ("quickstart", "--dry-run", "data.source=text.txt", "tokenizer=org/none"),
    ):
        code, _, err = launch(capsys, *words)
        assert code == 2 and "`launch download org/none --tokenizer-only`" in err, err


def test_a_model_without_weights_names_the_command(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (snapshot / "model.safetensors").unlink()
    code, _, err = launch(capsys, "generate", "org/tiny", "--prompt", "a")
    assert code == 2 and f"`launch download org/tiny --revision {COMMIT}`" in err, err


def test_a_run_keeps_the_commit_that_it_began_with(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The branch may move before it is resumed. A place with a queue is told that its nodes must see the cache."""
    Path("text.txt").write_text("some text " * 999)
    words = ("data.source=text.txt", "data.validation=0.2", "data.seq_len=16")
    model = ("model.init_from=org/tiny", "tokenizer=org/tiny", "name=x")
    for cluster, warned in (("local", False), ("slurm", True)):
        code, out, err = launch(capsys, "quickstart", "--dry-run", "--json", "--cluster", cluster, *words, *model)
        assert code == 0, err
        facts = json.loads(out)
        assert facts["recipe"]["model"]["init_from"] == facts["recipe"]["tokenizer"] == str(snapshot)
        assert any("every node must see" in note and "org/tiny" in note for note in facts["plan"]["notes"]) == warned


def test_models_in_the_cache_complete(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # no runs of other tests
    context = cli.make_context("launch", ["version"])
    parameter = cli.params[0]
    assert [item.value for item in complete_model(context, parameter, "org/")] == ["org/tiny"]
    assert [item.type for item in complete_model(context, parameter, "")] == ["file"]
