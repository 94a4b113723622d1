"""Quantised folders against the values that transformers, or the format's own definition, gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import config_from_hf
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import edit_json, llama, random_model, weights_of

KEY = "model.layers.1.mlp.up_proj.weight"
OURS = "blocks.1.mlp.up_proj.weight"


def quantise(folder: Path, change: Any, **facts: Any) -> Path:
    """A saved model with some tensors replaced, and what config.json says of that."""
    save_hf(weights_of(random_model(llama())), llama(), str(folder), dtype=torch.bfloat16)
    return repack(folder, change, **facts)


def repack(folder: Path, change: Any, **facts: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit_json(folder / "config.json", quantization_config=facts)
    return folder


@pytest.mark.parametrize("block", [(32, 16), (30, 20), None])
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_fp8_is_multiplied_by_the_scale_of_its_block(block: tuple[int, int] | None, name: str, tmp_path: Path) -> None:
    kept: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> None:
        weight = tensors[KEY].to(torch.float8_e4m3fn)
        rows, columns = weight.shape
        edges = block or (rows, columns)
        scales = torch.rand(-(-rows // edges[0]), -(-columns // edges[1])) + 0.5
        spread = scales.repeat_interleave(edges[0], 0)[:rows].repeat_interleave(edges[1], 1)[:, :columns]
        kept["expected"] = weight.float() * spread
        tensors[KEY] = weight
        tensors[KEY.replace("weight", name)] = scales if block else scales.reshape(())
        tensors[KEY.replace("weight", "input_scale")] = torch.ones(())

    folder = quantise(tmp_path, change, quant_method="fp8", weight_block_size=block and list(block))
    weights = HFWeights(str(folder), dequantised=torch.float32)
    assert torch.equal(weights.get(OURS), kept["expected"])
    assert torch.equal(dict(weights.rows({OURS: range(17, 41)}))[OURS], kept["expected"][17:41])
    assert torch.equal(HFWeights(str(folder)).get(OURS), kept["expected"].bfloat16())


def test_compressed_tensors_have_a_scale_for_each_row(tmp_path: Path) -> None:
    kept: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> None:
        weight = torch.randint(-127, 128, tensors[KEY].shape, dtype=torch.int8)
        scales = torch.rand(weight.shape[0], 1)
        kept["expected"] = weight.float() * scales
        tensors |= {KEY: weight, KEY + "_scale": scales}

    folder = quantise(tmp_path, change, quant_method="compressed-tensors", format="int-quantized")
    assert torch.equal(HFWeights(str(folder), dequantised=torch.float32).get(OURS), kept["expected"])


def test_mxfp4_has_the_values_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 4}
    config = config_from_hf({**ARCHITECTURES["gpt-oss"], **sizes})
    save_hf(weights_of(random_model(config)), config, str(tmp_path), dtype=torch.bfloat16)
    dense: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
            experts, width, rows = tensors.pop(key).shape
            blocks = torch.randint(0, 256, (experts, rows, width // 32, 16), dtype=torch.uint8)
            scales = torch.randint(110, 140, blocks.shape[:-1], dtype=torch.uint8)
            dense[key] = convert_moe_packed_tensors(blocks.clone(), scales.clone()).contiguous()
            tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}

    repack(tmp_path, change, quant_method="mxfp4")
    found = HFWeights(str(tmp_path))
    values = {key: found.get(key) for key in found.keys()}  # noqa: SIM118
    some = {key: range(1, 3) for key in values if ".experts." in key}
    rows = dict(found.rows(some))

    def undo(tensors: dict[str, Tensor]) -> None:
        for key, tensor in dense.items():
            tensors[key] = tensor
            del tensors[f"{key}_blocks"], tensors[f"{key}_scales"]

    repack(tmp_path, undo)
    plain = HFWeights(str(tmp_path))
    assert all(torch.equal(plain.get(key), value) for key, value in values.items())
    assert all(torch.equal(plain.get(key)[1:3], value) for key, value in rows.items())


def test_scales_that_are_missing_or_do_not_fit_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[KEY] = tensors[KEY].to(torch.float8_e4m3fn)

    folder = quantise(tmp_path, change, quant_method="fp8", weight_block_size=[32, 16])
    with pytest.raises(ValueError, match=rf"model\.safetensors: {KEY} is of float8_e4m3fn, and there is no"):
        HFWeights(str(folder))
    repack(folder, lambda tensors: tensors.update({KEY + "_scale_inv": torch.ones(2, 2)}), quant_method="fp8")
    with pytest.raises(ValueError, match=rf"{KEY} of shape \[80, 48\] has scales of shape \[2, 2\]"):
        HFWeights(str(folder))
    edit_json(folder / "config.json", quantization_config=None)
    repack(folder, lambda tensors: tensors.pop(KEY + "_scale_inv"))
    with pytest.raises(ValueError, match=rf"{KEY} is of float8_e4m3fn, and config\.json says nothing of quantised"):
        HFWeights(str(folder))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "awq"}, "'awq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "'pack-quantized'"),
        ({"quant_method": "new"}, "'new'"),
    ],
)
def test_others_are_refused_by_name(facts: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"{said}.* which is not read; read are fp8, .*dequantize"):
        config_from_hf({**ARCHITECTURES["gpt-oss"], "quantization_config": facts})


def test_an_element_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = quantise(tmp_path, lambda tensors: None)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw.replace(b'"BF16"', b'"F4"  ', 1))
    with pytest.raises(ValueError, match=r"model\.safetensors: \S+weight is of the element type F4, which"):
        HFWeights(str(folder))
