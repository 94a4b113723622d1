"""`launch generate --ranks` and `--devices` as people type them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launchyard.launcher.cli.main import main
from tests.support.tiny_models import byte_tokenizer, neox, random_model, weights_of, write_checkpoint

CONFIG = neox(vocab_size=300, padded_vocab_size=384)
WORDS = ("--prompt", "the ", "--max-new-tokens", "12", "--seed", "7")


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "runs" / "tale-abcd"
    byte_tokenizer(folder / "tokenizer/tokenizer.json")
    write_checkpoint(folder / "checkpoints/step-00000005", CONFIG, weights_of(random_model(CONFIG)), step=5)
    return str(folder)


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_several_devices_write_what_one_does(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    alone = launch(capsys, "generate", run, *WORDS)
    spread = launch(capsys, "generate", run, *WORDS, "--devices", "cpu,cpu")
    assert alone[:2] == spread[:2]
    assert alone[0] == 0


def test_what_cannot_be_shared_is_said_before_anything_starts(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = launch(capsys, "generate", run, *WORDS, "--ranks", "3")
    assert (code, out) == (2, "")
    assert err == "error: 3 ranks cannot share n_kv_heads (4) evenly; this model takes 1, 2 or 4 ranks\n"


def test_torchrun_says_how_many_ranks_there_are(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, err = launch(capsys, "generate", run, *WORDS, "--ranks", "2")
    assert code == 2
    assert "--ranks is 2, and torchrun started 4" in err


def in_ranks(*words: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "launchyard", "generate", *words, "--ranks", "2"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, input=typed)


@pytest.mark.slow
def test_two_ranks_write_what_one_does_and_one_of_them_speaks(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, alone, _ = launch(capsys, "generate", run, *WORDS, "--json")
    done = in_ranks(run, *WORDS, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == json.loads(alone)["text"]
    done = in_ranks(run, *WORDS[2:], "--prompt", "-", "--json", typed="the ")
    assert json.loads(done.stdout)["text"] == json.loads(alone)["text"]
    done = in_ranks(run, "--prompt", "x " * 99)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the prompt has ")
    assert done.stderr.count("error") == 1
