"""GGUF files: every family goes in and out unchanged, and what is wrong with a file is said by its name."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch
from torch import Tensor

from launchyard import load
from launchyard.model.config import ModelConfig
from launchyard.model.weights.gguf import GGUFWeights
from launchyard.model.weights.gguf_export import save_gguf
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.source import find_source, read_config
from launchyard.model.weights.theirs import TheirTensors
from launchyard.model.zoo import BY_TYPE, check_gguf, config_from_hf, presets
from launchyard.model.zoo.gguf import gguf_rules
from launchyard.storage.errors import CorruptError
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import llama, random_model, random_tokens, weights_of

# Features that llama.cpp does not compute, as transformers' keys that switch them off.
_WITHOUT = {
    "qwen3": {"attention_bias": False},
    "qwen3-moe": {"attention_bias": False, "mlp_only_layers": []},
    "gemma": {"attention_bias": False},
    "gemma2": {"attention_bias": False, "query_pre_attn_scalar": 20},
    "gemma3": {"attention_bias": False, "query_pre_attn_scalar": 20},
    "olmo": {"attention_bias": False, "head_dim": 12},
    "olmo2": {"attention_bias": False, "head_dim": 12, "rope_parameters": None},
    "olmo3": {"attention_bias": False, "head_dim": 12},
    "olmoe": {"attention_bias": False, "clip_qkv": None, "num_key_value_heads": 4},
    "cohere": {"attention_bias": False, "head_dim": 12, "use_qk_norm": False},
    "cohere2": {"attention_bias": False, "head_dim": 12, "rope_parameters": None},
    "smollm3": {"attention_bias": False, "mlp_bias": False},
    "exaone4": {"head_dim": 12},
    "nemotron": {"head_dim": 12},
    "qwen2-moe": {"head_dim": 12, "mlp_only_layers": [], "tie_word_embeddings": False},
    "seed-oss": {"mlp_bias": False},
    "arcee": {"attention_bias": False, "mlp_bias": False},
    "glm": {"head_dim": 12},
    "deepseek-v2-lite": {"q_lora_rank": 24},
    "deepseek-v3": {"attention_bias": False},
    "llama4": {"attention_bias": False, "attention_chunk_size": 8192, "attn_scale": 0.1, "floor_scale": 8192},
    "phimoe": {"router_jitter_noise": 0.01},
    "mpt": {"attn_config": {"clip_qkv": 1.5}},
    "falcon-multi-head": {"bias": False},
}  # fmt: skip


def gguf_shaped(name: str, **keys: object) -> ModelConfig:
    """A tiny model of an architecture, without what llama.cpp does not compute."""
    return config_from_hf({**ARCHITECTURES[name], **_WITHOUT.get(name, {}), **keys})


def _has_form(name: str) -> bool:
    try:
        check_gguf(gguf_shaped(name))
    except ValueError:
        return False
    return True


NAMES = [name for name in ARCHITECTURES if _has_form(name)]


class MadeWeights:
    """Tensors in memory as weights."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def get(self, key: str) -> Tensor:
        return self._tensors[key]


def _write(path: Path | str, config: ModelConfig, *, dtype: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    tensors = weights_of(random_model(config))
    return tensors, save_gguf(MadeWeights(tensors), config, str(path), dtype=dtype)


# -- every family ----------------------------------------------------------------------------------------------------
def test_every_family_has_a_form_but_those_llama_cpp_does_not_know() -> None:
    without = {kind for kind, family in BY_TYPE.items() if family.gguf is None}
    assert without == {"opt", "nope_gpt", "nanochat", "gptj"}
    assert {gguf_shaped(name).family for name in NAMES} == (
        {gguf_shaped(name).family for name in ARCHITECTURES} - without
    ) - {"internlm3"}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_comes_back_as_it_went(name: str, tmp_path: Path) -> None:
    config = gguf_shaped(name)
    tensors, _ = _write(tmp_path / "m.gguf", config, dtype="F32")
    read = GGUFWeights(str(tmp_path / "m.gguf"))
    assert read.config.model_copy(update={"family": config.family}) == config
    assert set(read.keys()) == set(tensors)
    rows = dict(read.rows({key: range(len(tensor) // 2, len(tensor)) for key, tensor in tensors.items()}))
    for key, tensor in tensors.items():
        assert torch.equal(rows[key], read.get(key)[len(tensor) // 2 :]), key
        if config.norm_weight == "plus_one" and key.endswith("norm.weight"):  # stored as 1 + it
            torch.testing.assert_close(read.get(key), tensor, rtol=0, atol=3e-7)
        else:
            assert torch.equal(read.get(key), tensor), key


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_of_a_file_do_not_share_or_lack_elements(name: str) -> None:
    config = gguf_shaped(name)
    facts = check_gguf(config)
    theirs = TheirTensors(weights_of(random_model(config)), config, gguf_rules(config, facts))
    ours = weights_of(random_model(config))
    assert sum(theirs.get(key).numel() for key in theirs.shapes) == sum(tensor.numel() for tensor in ours.values())


def test_every_preset_has_a_form_but_those_of_other_families() -> None:
    refused = set()
    for config in presets().values():
        try:
            check_gguf(config)
        except ValueError:
            refused.add(config.family)
    without = {"opt", "nope_gpt", "nanochat", "gptj"}
    assert refused == {*without, "internlm3", "nemotron"}, "a dynamic stretch, and wide heads"


def test_what_has_no_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="opt models have no GGUF form"):
        check_gguf(gguf_shaped("opt"))
    with pytest.raises(ValueError, match=r"attention_bias is True, it can only be False"):
        check_gguf(config_from_hf(ARCHITECTURES["gemma2"]))
    with pytest.raises(ValueError, match=r"moe\.dense_layers is \(1,\), it can only be \(\)"):
        check_gguf(config_from_hf({**ARCHITECTURES["qwen3-moe"], "attention_bias": False}))


# -- element types ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dtype", "bits"), [("Q8_0", 8), ("Q5_1", 5), ("Q5_0", 5), ("Q4_1", 4), ("Q4_0", 4)])
def test_a_quantised_file_is_within_its_rounding(dtype: str, bits: int, tmp_path: Path) -> None:
    config = llama(dim=64, ffn_dim=96)
    tensors, notes = _write(tmp_path / "m.gguf", config, dtype=dtype)
    read = GGUFWeights(str(tmp_path / "m.gguf"))
    assert not notes
    for key, tensor in tensors.items():
        found = read.get(key)
        assert found.dtype == torch.float32
        assert torch.equal(dict(read.rows({key: range(3, 9)}))[key], found[3:9]), key
        if tensor.dim() == 1:
            assert torch.equal(found, tensor), f"{key}: vectors stay fp32"
            continue
        blocks = tensor.reshape(-1, 32)
        step = (blocks.amax(1) - blocks.amin(1)).clamp(min=blocks.abs().amax(1)) * 2 / 2**bits
        assert bool(((found.reshape(-1, 32) - blocks).abs().amax(1) <= step).all()), key


def test_rows_that_are_no_multiple_of_a_block_stay_f16_and_that_is_said(tmp_path: Path) -> None:
    _, notes = _write(tmp_path / "m.gguf", llama(), dtype="Q8_0")
    assert len(notes) == 1
    assert "23 tensors are F16, not Q8_0, whose blocks of 32" in notes[0]
    assert GGUFWeights(str(tmp_path / "m.gguf")).dtype("blocks.0.attention.q_proj.weight") == torch.float16


def test_numbers_beyond_f16_are_refused_by_name(tmp_path: Path) -> None:
    config = llama()
    tensors = weights_of(random_model(config))
    tensors["blocks.1.mlp.up_proj.weight"][0, 0] = 1e6
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight has numbers beyond the range of F16"):
        save_gguf(MadeWeights(tensors), config, str(tmp_path / "m.gguf"), dtype="F16")
    assert not list(tmp_path.iterdir()), "nothing is left of an export that failed"


def test_a_type_that_is_not_written_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Q4_K is no type .* F32, F16, BF16, Q8_0"):
        _write(tmp_path / "m.gguf", llama(), dtype="Q4_K")


def test_a_window_that_llama_cpp_does_not_apply_is_said(tmp_path: Path) -> None:
    assert "the window of this one" in _write(tmp_path / "m.gguf", gguf_shaped("mistral"))[1][0]
    assert _write(tmp_path / "n.gguf", gguf_shaped("gemma2"))[1] == []


# -- a file as a MODEL -----------------------------------------------------------------------------------------------
def test_a_file_or_its_folder_is_a_model(tmp_path: Path) -> None:
    config = llama()
    tensors, _ = _write(tmp_path / "m.gguf", config)
    for place in (tmp_path / "m.gguf", tmp_path):
        assert find_source(str(place)).kind == "gguf"
        assert read_config(str(place)) == config
    loaded = load(str(tmp_path))
    assert all(torch.equal(weights_of(loaded.transformer)[key], tensor) for key, tensor in tensors.items())
    _write(tmp_path / "other.gguf", config)
    with pytest.raises(ValueError, match=r"2 GGUF files, m\.gguf, other\.gguf; name the one"):
        find_source(str(tmp_path))


def test_a_file_of_f16_computes(tmp_path: Path) -> None:
    config = llama()
    _write(tmp_path / "m.gguf", config, dtype="BF16")
    assert load(str(tmp_path)).transformer(random_tokens(config, 1, 4)).dtype == torch.bfloat16


def test_a_file_becomes_a_hugging_face_folder(tmp_path: Path) -> None:
    config = llama()
    tensors, _ = _write(tmp_path / "m.gguf", config)
    read = GGUFWeights(str(tmp_path / "m.gguf"))
    save_hf(read, read.config, str(tmp_path / "hf"))
    assert all(torch.equal(HFWeights(str(tmp_path / "hf")).get(key), tensor) for key, tensor in tensors.items())


def test_an_export_to_a_store(tmp_path: Path) -> None:
    config = llama()
    url = f"memory://{tmp_path.name}/m.gguf"
    _write(url, config)
    fsspec.filesystem("memory").get(f"/{tmp_path.name}/m.gguf", str(tmp_path / "m.gguf"))
    assert GGUFWeights(str(tmp_path / "m.gguf")).config == config
    with pytest.raises(ValueError, match="copy it here first"):
        GGUFWeights(url)


# -- faults ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [0, 3, 40, 3000, -40])
def test_a_cut_file_is_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path, llama())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptError, match=r"m\.gguf is (no GGUF file|cut)"):
        GGUFWeights(str(path))


def test_a_tensor_that_is_missing_or_misshapen_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path, llama())
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(ValueError, match=r"m\.gguf: .*missing blk\.1\.ffn_up\.weight; unknown blk\.1\.ffn_xx\.weight"):
        GGUFWeights(str(path))
    narrow = (48).to_bytes(8, "little") + (80).to_bytes(8, "little")
    name = raw.index(b"blk.1.ffn_up.weight")
    at = raw.index(narrow, name)
    path.write_bytes(raw[:at] + narrow[8:] + narrow[:8] + raw[at + 16 :])
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight has shape \[48, 80\].* make it \[80, 48\]"):
        GGUFWeights(str(path))


def test_an_architecture_that_we_do_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    _write(path, llama())
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(ValueError, match=r"m\.gguf: general\.architecture is 'mamba'; supported are arcee, bloom"):
        GGUFWeights(str(path))


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    _write(tmp_path / "m-00001-of-00002.gguf", llama())
    with pytest.raises(CorruptError, match=r"m-00002-of-00002\.gguf is missing"):
        GGUFWeights(str(tmp_path / "m-00001-of-00002.gguf"))
