"""`launch export --to peft` and `launch merge` of runs that train an adapter, as people type them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from launchyard.launcher.cli.main import main
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import adapter_shapes
from launchyard.run.rundir import RunDir
from tests.support.small_runs import MODEL, make_run, run_workers, write_data

CONFIG = ModelConfig.model_validate(MODEL)
pytestmark = pytest.mark.slow


def trained(folder: Path, adapter: Adapter | None) -> RunDir:
    run = make_run(folder / "run", write_data(folder / "data"), {"optimizer.lr": 0.01, "train.max_steps": 2})
    if adapter is not None:
        run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})
    run_workers(run, 1)
    return run


def launch(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def facts_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = launch(capsys, *words, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_an_exported_adapter_is_counted_without_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = Adapter(kind="lora", r=4)
    run = trained(tmp_path, adapter)
    facts = facts_of(capsys, "export", run.url, "--to", "peft", "--out", tmp_path / "out")
    with safe_open(tmp_path / "out/adapter_model.safetensors", framework="pt") as file:
        written = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    rows_and_columns = adapter_shapes(CONFIG, adapter).values()
    assert facts["n_params"] == written >= sum(rows * columns for rows, columns in rows_and_columns)
    code, out, _ = launch(capsys, "export", run.url, "--to", "peft", "--out", tmp_path / "again")
    assert code == 0 and f"{written:,} parameters" in out


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_second_merge_is_the_first(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, Adapter.model_validate({"kind": kind, "r": 4}))
    once, again = (facts_of(capsys, "merge", run.url, "--out", tmp_path / name) for name in ("once", "again"))
    assert {**once, "out": ""} == {**again, "out": ""}
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "again")]
    assert files[0] == files[1]
    assert (once["base_form"] is not None) == (kind == "qlora")
    code, out, err = launch(capsys, "merge", run.url, "--out", tmp_path / "half", "--dtype", "bfloat16")
    assert code == 0 and "bfloat16, within" in out and ("as trained" in err) == (kind == "qlora")
    code, _, err = launch(capsys, "merge", run.url, "--out", tmp_path / "once")
    assert code == 2 and "is not empty" in err


def test_a_run_without_an_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, None)
    for words in (("export", run.url, "--to", "peft"), ("merge", run.url)):
        code, out, err = launch(capsys, *words, "--out", tmp_path / "out")
        assert (code, out) == (2, ""), err
        assert run.url in err and not (tmp_path / "out").exists()
