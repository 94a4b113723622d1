"""Rows of parameters out of every layout: the same values as whole tensors, and no more bytes than they take."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import config_from_hf
from launchyard.storage import files
from launchyard.storage.safetensors import GAP_BYTES
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import llama, neox, random_model, weights_of


def saved(config: ModelConfig, folder: str) -> HFWeights:
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in parameter_shapes(config).items()}
    save_hf(tensors, config, folder)
    return HFWeights(folder)


def share(rank: int, world_size: int, config: ModelConfig) -> dict[str, range]:
    """The rows that FSDP gives to a rank."""
    wanted = {}
    for key, (rows, *_) in parameter_shapes(config).items():
        size = -(-rows // world_size)
        wanted[key] = range(min(rank * size, rows), min((rank + 1) * size, rows))
    return wanted


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_those_of_the_whole_tensor(name: str, tmp_path: Path) -> None:
    weights = saved(config_from_hf(ARCHITECTURES[name]), str(tmp_path))
    draw = random.Random(name)
    for _ in range(2):
        wanted = {}
        for key, (rows, *_) in parameter_shapes(weights.config).items():
            start = draw.randrange(rows)
            wanted[key] = range(start, draw.randint(start, rows))
        found = dict(weights.rows(wanted))
        assert found.keys() == wanted.keys()
        for key, rows in wanted.items():
            assert torch.equal(found[key], weights.get(key)[rows.start : rows.stop]), key
            assert found[key].is_contiguous()


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    counts: list[int] = []
    real = files.read_into

    def counted(path: str, start: int, *targets: memoryview) -> int:
        counts.append(real(path, start, *targets))
        return counts[-1]

    monkeypatch.setattr(files, "read_into", counted)
    yield counts


SIZES = {"dim": 128, "ffn_dim": 512, "n_layers": 2, "vocab_size": 512, "padded_vocab_size": 512}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 32}
FUSED = {
    "a tensor of its own for each": llama(**SIZES),
    "head by head": neox(**SIZES),
    "group by group": config_from_hf(
        {**ARCHITECTURES["falcon-40b"], "hidden_size": 256, "num_attention_heads": 8, "num_kv_heads": 4}
    ),
    "experts": config_from_hf({**ARCHITECTURES["gpt-oss"], **WIDE, "num_local_experts": 4}),
}


@pytest.mark.parametrize("config", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_read_the_model_once(
    config: ModelConfig, world_size: int, bytes_read: list[int], tmp_path: Path
) -> None:
    url = f"memory://rows-{tmp_path.name}"
    saved(config, url)
    size = files.size(f"{url}/model.safetensors")
    assert size > 10 * GAP_BYTES
    whole = HFWeights(url)
    for rank in range(world_size):
        wanted = share(rank, world_size, config)
        for key, rows in HFWeights(url).rows(wanted):
            assert rows.shape[0] == len(wanted[key])
    assert sum(bytes_read) <= 1.05 * size
    assert torch.equal(whole.get("norm.weight"), dict(whole.rows({"norm.weight": range(config.dim)}))["norm.weight"])


def test_a_store_and_a_disk_give_the_same_rows(tmp_path: Path) -> None:
    config = neox()
    for folder in (str(tmp_path), url := f"memory://same-{tmp_path.name}"):
        save_hf(weights_of(random_model(config)), config, folder)
    wanted = share(1, 2, config)
    here = dict(HFWeights(str(tmp_path)).rows(wanted))
    there = dict(HFWeights(url).rows(wanted))
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)
