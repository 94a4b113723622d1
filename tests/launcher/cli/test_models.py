"""`launch models` as people type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.cli.main import main
from launchyard.model.zoo import config_to_hf, preset, presets


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(("models", *words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def facts(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code, out, err = launch(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_pipe_gets_one_preset_a_line_by_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split("\t") for line in launch(capsys)[1].splitlines()]
    assert [row[0] for row in rows] == list(presets())
    assert {len(row) for row in rows} == {8}
    assert next(row[1] for row in rows if row[0] == "smollm2-135m") == "135M"


def test_a_part_of_a_name_or_a_family_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["name"] for row in facts(capsys, "pythia-1")} == {
        f"pythia-{n}" for n in ("14m", "160m", "1b", "1.4b", "12b")
    }
    assert {row["family"] for row in facts(capsys, "gemma3_text")} == {"gemma3_text"}
    assert facts(capsys)[3]["n_params"] == 162_322_944


def test_a_preset_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "pythia-160m", "--seq-len", "1024", "--device", "a100", "--devices", "2", "--mfu", "0.5")
    assert found["config"] == preset("pythia-160m").model_dump(mode="json")
    assert sum(found["parts"].values()) == found["n_params"] == 162_322_944
    assert found["chinchilla_tokens"] == 20 * 162_322_944
    per_token = found["flops_per_token"]["training_by_palm"]
    assert found["training"]["days"] == pytest.approx(
        per_token * 20 * 162_322_944 / (2 * 312e12 * 0.5) / 86400, abs=1e-3
    )
    assert found["serving_memory"]["bf16"]["cache"] == 2 * 2 * 12 * 768 * 2048
    text = launch(capsys, "pythia-160m")[1]
    assert "162,322,944" in text
    assert "Hoffmann" in text


def test_a_folder_and_a_recipe_are_described_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(preset("smollm2-135m"))))
    assert facts(capsys, str(tmp_path))["n_params"] == 134_515_008
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nmodel: {preset: gpt2}\ndata: {source: text, seq_len: 256}\ntrain: {max_steps: 1}\n")
    found = facts(capsys, str(recipe))
    assert (found["n_params"], found["flops_per_token"]["seq_len"]) == (124_439_808, 256)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pythai-160m",), "did you mean pythia-160m"),
        (("{tmp}",), "config.json cannot be read"),
        (("gpt2", "--device", "tpu"), "its peak is not known; there are GB200"),
    ],
)
def test_a_mistake_is_one_clear_error(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = launch(capsys, *(word.format(tmp=tmp_path) for word in words))
    assert (code, out) == (2, "")
    assert said in err
