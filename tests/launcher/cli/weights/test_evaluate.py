"""`launch evaluate` as people type it."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from launchyard.launcher.cli.main import main
from launchyard.launcher.cli.weights import evaluate
from launchyard.model.weights.load import open_weights, sampled_digest
from tests.model.evaluate.conftest import TEMPLATE, write_model, write_tasks

TEXT = "the cat and the dog,\r\nthe end of the tale: äöü "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), adds_bos=True))


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lm-eval's imports
        main(["evaluate", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code, out, err = launch(capsys, *words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err


# -- a text ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "tale.txt").write_bytes(TEXT.encode())
    return str(tmp_path / "tale.txt")


def test_a_text_for_people_and_for_programs(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = launch(capsys, model, "--text", text, "--json", "--device", "cpu")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["n_bytes"] == len(TEXT.encode())
    assert facts["prefix_token"] == {"id": 2, "text": "<bos>"}
    assert facts["added_tokens"] == ["<bos>"]
    assert (facts["max_length"], facts["dtype"], facts["device"]) == (96, "float32", "cpu")
    assert facts["weights"] == sampled_digest(open_weights(model)[1])
    assert set(facts["versions"]) == {"launchyard", "torch"}
    code, out, err = launch(capsys, model, "--text", text, "--device", "cpu")
    assert f"{facts['bits_per_byte']:.6g}" in out
    assert facts["weights"] in out
    assert "prefix token <bos>, max_length 96" in out


def test_a_text_from_standard_input_and_into_a_folder(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    code, out, err = launch(capsys, model, "--text", "-", "--json", "--out", str(tmp_path / "out"))
    assert code == 0, err
    piped = json.loads(out)
    assert json.loads((tmp_path / "out/results.json").read_text()) == piped
    assert not (tmp_path / "out/samples.jsonl").exists()
    from_file = json.loads(launch(capsys, model, "--text", text, "--json")[1])
    assert from_file["logprob"] == piped["logprob"]
    assert "holds results.json" in refused(capsys, model, "--text", text, "--out", str(tmp_path / "out"))


def test_what_cannot_be_evaluated_is_refused(
    model: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give --tasks NAMES" in refused(capsys, model)
    assert "give --tasks NAMES" in refused(capsys, model, "--tasks", "a", "--text", text)
    assert "--num-fewshot is for --tasks" in refused(capsys, model, "--text", text, "--num-fewshot", "0")
    assert "--apply-chat-template is for --tasks" in refused(capsys, model, "--text", text, "--apply-chat-template")
    assert "no such file or folder: nowhere" in refused(capsys, model, "--text", "nowhere")
    assert "between 1 and 96" in refused(capsys, model, "--text", text, "--max-length", "97")
    (tmp_path / "raw").write_bytes(b"\xff\xfe")
    assert "raw is no text in UTF-8" in refused(capsys, model, "--text", str(tmp_path / "raw"))


# -- tasks -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


def test_tasks_end_in_a_table_and_in_files(
    model: str, tasks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (model, "--tasks", "our_choice,our_until", "--include", tasks, "--limit", "3", "--out", str(tmp_path))
    code, out, err = launch(capsys, *words, "--apply-chat-template", "--system", "Be brief.", "--seed", "3")
    assert code == 0, err
    assert out.splitlines()[0].split() == ["task", "metric", "value", "±", "stderr", "shots", "samples"]
    assert any(line.split()[:2] == ["our_choice", "acc_norm"] for line in out.splitlines())
    facts: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    assert {(row["task"], row["metric"], row["n_shot"], row["n_samples"]) for row in facts["results"]} == {
        ("our_choice", "acc", 1, 3),
        ("our_choice", "acc_norm", 1, 3),
        ("our_until", "exact_match", 0, 3),
    }
    assert (facts["limit"], facts["seed"], facts["system"], facts["system_dropped"]) == (3, 3, "Be brief.", False)
    import hashlib

    assert facts["chat_template"] == {"sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest()}
    assert facts["chat_template"]["sha256"][:12] in out
    assert set(facts["versions"]) == {"launchyard", "torch", "lm_eval"}
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["task"] for sample in samples] == ["our_choice"] * 3 + ["our_until"] * 3
    assert all("Be brief." in sample["arguments"][0][0] for sample in samples)


def test_outside_of_a_repository_nothing_is_asked_of_git(
    model: str, tasks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    code, out, err = launch(capfd, model, "--tasks", "our_until", "--include", tasks, "--limit", "1")
    assert (code, "our_until" in out) == (0, True)
    assert "git" not in err


def test_without_lm_eval_the_extra_is_named(
    model: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    said = refused(capsys, model, "--tasks", "our_choice")
    assert "launchyard[evaluate]" in said
    assert "lm-eval>=" in said
    assert launch(capsys, model, "--text", text, "--json")[0] == 0
