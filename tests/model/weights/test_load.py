"""load() takes whatever a model can be, from wherever it lies, and says what is wrong with what it cannot take."""

from __future__ import annotations

import inspect
from pathlib import Path

import fsspec
import pytest
import torch

from launchyard import load
from launchyard.model.config import ModelConfig
from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import CheckpointWeights, LoadedModel, LoadOptions, pick_device
from launchyard.model.weights.load import load as load_place
from launchyard.model.weights.source import find_source, read_config
from launchyard.storage.errors import CorruptError
from launchyard.storage.shards import MANIFEST, read_manifest, sealed
from tests.support.tiny_models import (
    byte_tokenizer,
    edit_json,
    llama,
    neox,
    random_model,
    random_tokens,
    weights_of,
    write_checkpoint,
)

CONFIG = neox(vocab_size=300, padded_vocab_size=384)


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    path = byte_tokenizer(tmp_path / "t/tokenizer.json")
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(tmp_path / "hf"), companions=companions_beside(path))
    return tmp_path / "hf"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints, and the leftovers of a third that was never committed."""
    folder = tmp_path / "run"
    byte_tokenizer(folder / "tokenizer/tokenizer.json")
    for step in (5, 10):
        weights = weights_of(random_model(CONFIG, seed=step))
        write_checkpoint(folder / f"checkpoints/step-{step:08d}", CONFIG, weights, step=step)
    (folder / "checkpoints/step-00000015").mkdir()
    (folder / "checkpoints/step-00000015/a.safetensors").write_bytes(b"half")
    return folder


def weights_equal(loaded: LoadedModel, *, seed: int, config: ModelConfig = CONFIG) -> bool:
    expected = weights_of(random_model(config, seed=seed))
    found = weights_of(loaded.transformer)
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


# -- sources ---------------------------------------------------------------------------------------------------------
def test_a_folder_a_checkpoint_and_a_run(hf_folder: Path, run: Path) -> None:
    assert weights_equal(load(str(hf_folder)), seed=0)
    assert weights_equal(load(f"file://{hf_folder}/"), seed=0)
    assert weights_equal(load(str(run / "checkpoints/step-00000005")), seed=5)
    assert weights_equal(load(str(run)), seed=10), "the newest committed checkpoint is meant"
    assert {read_config(str(path)) for path in (hf_folder, run)} == {CONFIG}


def test_a_folder_is_what_its_config_says_however_it_is_called(hf_folder: Path) -> None:
    """Other weights of a known architecture need no word about it."""
    edit_json(hf_folder / "config.json", _name_or_path="somebody/Else-7B", architectures=None)
    renamed = hf_folder.rename(hf_folder.with_name("My-Llama-13B-v3"))
    assert weights_equal(load(str(renamed)), seed=0)


def test_urls(hf_folder: Path, run: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for folder in (hf_folder, run):
        memory.put(str(folder), f"/{tmp_path.name}/{folder.name}", recursive=True)
    base = f"memory://{tmp_path.name}"
    assert weights_equal(load(f"{base}/hf"), seed=0)
    loaded = load(f"{base}/run")
    assert weights_equal(loaded, seed=10)
    assert loaded.generate("the ", max_new_tokens=5, seed=1) == load(str(run)).generate(
        "the ", max_new_tokens=5, seed=1
    )


def test_a_checkpoint_of_a_relative_path_finds_the_tokenizer_of_its_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run / "checkpoints/step-00000005")
    assert load(".").tokenizer.path == str(run / "tokenizer/tokenizer.json")


def test_all_forms_write_the_same_text(run: Path, tmp_path: Path) -> None:
    loaded = load(str(run))
    save_hf(weights_of(loaded.transformer), CONFIG, str(tmp_path / "out"), companions=loaded.companions)
    again = load(str(tmp_path / "out"))
    assert again.config == CONFIG
    assert again.generate("the cat", seed=3, max_new_tokens=30) == loaded.generate("the cat", seed=3, max_new_tokens=30)


def test_local_weights_are_mapped_and_the_file_stays_as_it_is(hf_folder: Path) -> None:
    before = (hf_folder / "model.safetensors").read_bytes()
    loaded = load(str(hf_folder))
    assert not any(parameter.requires_grad for parameter in loaded.transformer.parameters())
    with torch.no_grad():
        loaded.transformer.norm.weight.zero_()
    assert (hf_folder / "model.safetensors").read_bytes() == before
    assert weights_equal(load(str(hf_folder)), seed=0)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    config = llama(tie_embeddings=True)
    write_checkpoint(tmp_path / "c", config, weights_of(random_model(config)))
    transformer = load(str(tmp_path / "c")).transformer
    assert transformer.lm_head.weight is transformer.embed.weight


def test_another_element_type(hf_folder: Path) -> None:
    transformer = load(str(hf_folder), dtype=torch.bfloat16).transformer
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.bfloat16}
    assert transformer(random_tokens(CONFIG, 1, 4)).dtype == torch.bfloat16


# -- faults ----------------------------------------------------------------------------------------------------------
def test_nothing_there_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"config\.json.*manifest\.json.*checkpoints/\*/manifest"):
        load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"looked for config\.json"):
        load("memory://nothing/here")


def test_a_config_without_weights_says_so(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights: looked for model\.safetensors"):
        load(str(hf_folder))


def test_a_config_that_is_no_json_is_named(hf_folder: Path) -> None:
    (hf_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load(str(hf_folder))


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "missing"])
def test_a_damaged_checkpoint_is_never_loaded(damage: str, run: Path) -> None:
    path = run / "checkpoints/step-00000010/a.safetensors"
    raw = bytearray(path.read_bytes())
    # Before the optimizer's moment, which the model does not read
    raw[len(raw) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw if damage == "flipped bit" else raw[: len(raw) // 2])
    with pytest.raises(CorruptError, match=r"a\.safetensors"):
        load(str(run))


def test_rows_of_a_checkpoint_are_those_of_its_tensors(run: Path) -> None:
    weights = CheckpointWeights(str(run / "checkpoints/step-00000010"))
    found = dict(weights.rows({key: range(5, 7) for key in weights.keys()}))  # noqa: SIM118
    assert all(torch.equal(found[key], weights.get(key)[5:7]) for key in weights.keys())  # noqa: SIM118


def test_a_checkpoint_that_lacks_a_parameter_is_named(run: Path) -> None:
    folder = run / "checkpoints/step-00000010"
    manifest = read_manifest(str(folder))
    del manifest.tensors["model.blocks.1.mlp.up_proj.bias"]
    (folder / MANIFEST).write_text(sealed(manifest))
    with pytest.raises(CorruptError, match=r"model\.blocks\.1\.mlp\.up_proj\.bias is missing"):
        CheckpointWeights(str(folder))


@pytest.mark.parametrize(
    ("device", "said"), [("cuda", "finds no GPU"), ("mps", "no GPU of Apple"), ("tpu9", "use auto, cpu, cuda")]
)
def test_a_device_that_is_not_there_is_an_error(
    device: str, said: str, hf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        load(str(hf_folder), device=device)
    assert pick_device("auto") == torch.device("cpu")


def test_no_tokenizer_is_said_when_text_is_wanted(hf_folder: Path) -> None:
    (hf_folder / "tokenizer.json").unlink()
    loaded = load(str(hf_folder))
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*/hf; give a tokenizer\.json"):
        loaded.generate("the")


# -- text ------------------------------------------------------------------------------------------------------------
def test_a_stream_is_the_text(hf_folder: Path) -> None:
    loaded = load(str(hf_folder))
    stream = loaded.generate("the", seed=1, max_new_tokens=40, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == loaded.generate("the", seed=1, max_new_tokens=40)
    assert len(pieces) > 10
    assert stream.ended == ("length" if stream.n_new == 40 else "stop")
    shorter = loaded.generate("the", seed=1, max_new_tokens=stream.n_new - 1, stream=True)
    assert "".join(pieces).startswith("".join(shorter))
    assert shorter.ended == "length"


def test_a_stop_string_ends_the_text(hf_folder: Path) -> None:
    loaded = load(str(hf_folder))
    free = loaded.generate("the", seed=1, max_new_tokens=40)
    stop = "$k"
    assert stop in free, "choose another seed"
    stream = loaded.generate("the", seed=1, max_new_tokens=40, stop=stop, stream=True)
    assert "".join(stream) == free[: free.index(stop)]
    assert stream.ended == "stop"
    assert stream.n_new < 40


def test_a_full_context_is_said(hf_folder: Path) -> None:
    stream = load(str(hf_folder)).generate("the", max_new_tokens=1000, temperature=0, stream=True)
    list(stream)
    assert stream.ended in ("context", "stop")
    assert stream.n_prompt + stream.n_new <= 64


def test_the_end_of_text_is_all_that_the_files_name(hf_folder: Path, run: Path) -> None:
    assert load(str(hf_folder)).stop_ids == load(str(run)).stop_ids == {0}
    edit_json(hf_folder / "config.json", eos_token_id=[3, 4])
    (hf_folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert load(str(hf_folder)).stop_ids == {0, 3, 4, 5}, "all that any file of the folder names"


def test_an_empty_prompt_begins_a_new_text(hf_folder: Path) -> None:
    stream = load(str(hf_folder)).generate("", max_new_tokens=3, seed=0, stream=True)
    list(stream)
    assert stream.n_prompt == 1


def test_find_source_prefers_nothing_by_its_name(run: Path) -> None:
    found = find_source(str(run))
    assert (found.kind, found.folder) == ("checkpoint", str(run / "checkpoints/step-00000010"))
    assert found.tokenizer == str(run / "tokenizer/tokenizer.json")


def test_options_that_are_passed_on_are_all_that_there_are() -> None:
    _, *keywords = inspect.signature(load_place).parameters.values()
    assert {one.name for one in keywords} == set(LoadOptions.__annotations__)
