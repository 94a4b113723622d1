"""Adapters on the command line: `launch merge`, `export --to peft` and `inspect` of one, over plain and other bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.launcher.cli.main import main
from launchyard.model.adapt.codes import rounded
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import adapter_shapes, frozen_names
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import open_weights
from tests.support.tiny_models import llama, random_model, weights_of, write_checkpoint

LORA = Adapter(kind="lora", r=3, targets=("q_proj", "down_proj"))
Q_PROJ = "blocks.1.attention.q_proj.weight"


def launch(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def facts(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = launch(capsys, *words, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def write_run(folder: Path, config: ModelConfig, adapter: Adapter, **origin: str) -> dict[str, torch.Tensor]:
    """A base, and a run over it that has saved once. What trained."""
    save_hf(weights_of(random_model(config, std=0.2)), config, str(folder / "base"), dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    shapes = adapter_shapes(config, adapter)
    trained = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    base = {"init_from": str(folder / "base"), "adapter": adapter.model_dump(mode="json"), **origin}
    frozen = frozen_names(config, adapter)
    write_checkpoint(folder / "run/checkpoints/step-00000005", config, trained, step=5, frozen=frozen, base=base)
    return trained


def test_a_merge_says_what_it_wrote_and_another_one_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added = write_run(tmp_path, llama(), LORA)
    said = facts(capsys, "merge", tmp_path / "run", "--out", tmp_path / "one", "--dtype", "bfloat16")
    assert (said["dtype"], said["base_form"], said["untied"]) == ("bfloat16", None, False)
    assert 0 < said["largest_difference"] < 0.02
    code, out, err = launch(capsys, "merge", tmp_path / "run", "--out", tmp_path / "two", "--dtype", "bfloat16")
    assert code == 0 and out.startswith(f"{tmp_path}/two: bfloat16, within 0.0"), err
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    update = added[Q_PROJ.replace("weight", "lora_b")] @ added[Q_PROJ.replace("weight", "lora_a")] * (16 / 3)
    merged = open_weights(str(tmp_path / "base"))[1].get(Q_PROJ).float() + update
    written = open_weights(str(tmp_path / "one"))[1].get(Q_PROJ)
    torch.testing.assert_close(written, merged.bfloat16(), rtol=0, atol=float(merged.abs().max()) / 128)


def test_what_cannot_be_merged_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, llama(), LORA)
    code, out, err = launch(capsys, "merge", tmp_path / "base", "--out", tmp_path / "out")
    assert (code, out) == (2, "") and "holds no adapter" in err and not (tmp_path / "out").exists()
    code, out, err = launch(capsys, "export", tmp_path / "base", "--to", "peft", "--out", tmp_path / "out")
    assert (code, out) == (2, "") and "has none" in err and not (tmp_path / "out").exists()
    code, out, err = launch(capsys, "merge", tmp_path / "run", "--out", tmp_path / "base")
    assert (code, out) == (2, "") and "is not empty" in err
    other = llama(n_layers=2)
    save_hf(weights_of(random_model(other)), other, str(tmp_path / "other"))
    code, out, err = launch(capsys, "merge", tmp_path / "run", "--base", tmp_path / "other", "--out", tmp_path / "out")
    assert (code, out) == (2, "") and "another config" in err


def test_a_quantised_base_is_merged_as_trained_or_plain_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = tmp_path / "run", tmp_path / "base"
    qlora = LORA.model_copy(update={"kind": "qlora"})
    write_run(tmp_path, llama(), qlora, quantize="nf4-dq")
    code, _, err = launch(capsys, "merge", run, "--out", tmp_path / "trained", "--dtype", "float32")
    assert code == 0 and "over the base's values in nf4-dq, as trained; --base BASE takes the plain ones" in err
    said = facts(capsys, "merge", run, "--base", base, "--out", tmp_path / "plain", "--dtype", "float32")
    assert said["base_form"] is None
    plain = open_weights(str(base))[1].get(Q_PROJ).float()
    mine, theirs = (open_weights(str(tmp_path / name))[1].get(Q_PROJ) for name in ("trained", "plain"))
    torch.testing.assert_close(mine - theirs, rounded(plain, "nf4-dq") - plain, rtol=0, atol=1e-5)


def test_a_tied_head_with_an_update_is_one_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = llama(tie_embeddings=True)
    write_run(tmp_path, config, Adapter(kind="lora", r=3, targets=("lm_head", "q_proj")))
    code, _, err = launch(capsys, "merge", tmp_path / "run", "--out", tmp_path / "out")
    assert code == 0 and "head and table differ now, and are two tensors" in err
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    theirs, weights = open_weights(str(tmp_path / "out"))
    assert not theirs.tie_embeddings and not torch.equal(weights.get("lm_head.weight"), weights.get("embed.weight"))


def test_an_exported_adapter_is_counted_described_and_merged_like_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = LORA.model_copy(update={"tokens": (5, 7)})
    trained = write_run(tmp_path, llama(), adapter)
    count = sum(tensor.numel() for tensor in trained.values())
    said = facts(capsys, "export", tmp_path / "run", "--to", "peft", "--out", tmp_path / "peft")
    assert said["n_params"] == count and "adapter_model.safetensors" in said["files"]
    both = f"{tmp_path}/base+{tmp_path}/peft"
    found = {place: facts(capsys, "inspect", place)["adapter"] for place in (both, tmp_path / "peft", tmp_path / "run")}
    for described in found.values():
        assert (described["kind"], described["r"], described["alpha"]) == ("lora", 3, 16)
        assert (described["n_params"], len(described["modules"]), len(described["tokens"])) == (count, 6, 2)
    assert facts(capsys, "inspect", tmp_path / "base")["adapter"] is None
    code, out, err = launch(capsys, "inspect", both)
    line = f"lora in {tmp_path}/peft, {count:,} parameters, r 3, alpha 16, 6 modules (down_proj, q_proj), some tokens"
    assert code == 0 and line in out, err
    for place, name in ((tmp_path / "run", "of-run"), (both, "of-both")):
        facts(capsys, "merge", place, "--out", tmp_path / name, "--dtype", "float32")
    mine, theirs = (open_weights(str(tmp_path / name))[1] for name in ("of-run", "of-both"))
    for key in mine.keys():  # noqa: SIM118
        torch.testing.assert_close(mine.get(key), theirs.get(key), rtol=1e-6, atol=1e-6, msg=key)
