"""`launch export` as people type it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from launchyard.launcher.cli.main import main
from launchyard.launcher.watch.transfer import transfer_bar
from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf_export import save_hf
from launchyard.storage.files import usage
from tests.support.tiny_models import byte_tokenizer, neox, random_model, weights_of

CONFIG = neox(vocab_size=300, padded_vocab_size=384)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(tmp_path / "model"), companions=companions_beside(tokenizer))
    return tmp_path / "model"


def launch(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_files_have_the_size_and_the_type_that_are_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = launch(
        capsys, "export", folder, "--out", tmp_path / "out", "--shard-size", "40KB", "--dtype", "float16", "--json"
    )
    assert code == 0, err
    facts = json.loads(out)
    shards = [name for name in facts["files"] if name.startswith("model-")]
    assert len(shards) > 1 and "model.safetensors.index.json" in facts["files"]
    assert all((tmp_path / "out" / name).stat().st_size < 48_000 for name in shards)
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"
    code, out, err = launch(capsys, "export", tmp_path / "out", "--out", tmp_path / "one", "--json")
    beside = ["generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads(out)["files"] == ["config.json", *beside]


def test_a_url_is_a_place_like_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"memory://export-{tmp_path.name}"
    code, out, err = launch(capsys, "export", folder, "--out", url, "--json")
    assert (code, json.loads(out)["bytes"]) == (0, usage(url)[1]), err
    code, _, err = launch(capsys, "export", url, "--out", tmp_path / "back")
    assert (
        code == 0 and (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    )
    code, _, err = launch(capsys, "export", folder, "--out", url)
    assert code == 2 and "is not empty" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard-size", "5"), "'5' is no size; write a number and its unit"),
        (("--shard-size", "0GB"), "'0GB' is no size"),
        (("--dtype", "int8"), "int8 is no element type"),
    ],
)
def test_a_mistake_is_one_clear_error(
    words: tuple[str, ...], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = launch(capsys, "export", folder, "--out", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert said in err and not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_a_pipe_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown, piped = Terminal(), io.StringIO()
    monkeypatch.setattr("launchyard.launcher.watch.transfer.PLAIN_SECONDS", 0.0)
    for out in (shown, piped):
        with transfer_bar("export to DIR", out) as on_bytes:
            on_bytes(250_000_000, 1_000_000_000)
    assert "export to DIR" in shown.getvalue() and "0.2/1.0 GB" in shown.getvalue()
    assert piped.getvalue().startswith("export to DIR: 250 MB of 1 GB (25%)  ") and "ETA" in piped.getvalue()
