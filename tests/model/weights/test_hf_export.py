"""The export as a stream: files planned from the config alone, and one tensor in memory at a time."""

from __future__ import annotations

import errno
import json
import resource
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import config_from_hf, rules
from launchyard.model.zoo.rules import overlaps
from launchyard.storage.files import listdir, read
from tests.support.architectures import ARCHITECTURES
from tests.support.store import Bucket
from tests.support.tiny_models import llama, neox, random_model, weights_of


class Counted:
    """Random weights, made when they are asked for, that know how many of them are still held, and of what size."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        self._shapes = parameter_shapes(config)
        self._dtype = dtype
        self._live = 0
        self.most = 0
        self.asked: Counter[str] = Counter()

    def keys(self) -> list[str]:
        return list(self._shapes)

    def dtype(self, key: str) -> torch.dtype:
        return self._dtype

    def get(self, key: str) -> Tensor:
        self.asked[key] += 1
        tensor = torch.full(self._shapes[key], 0.5, dtype=self._dtype)
        self._live += 1
        self.most = max(self.most, self._live)
        weakref.finalize(tensor.untyped_storage(), self._release)
        return tensor

    def _release(self) -> None:
        self._live -= 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_what_one_of_their_tensors_needs_is_held_and_each_is_read_once(name: str, tmp_path: Path) -> None:
    config = config_from_hf(ARCHITECTURES[name])
    weights = Counted(config)
    save_hf(weights, config, str(tmp_path), max_file_bytes=50_000)
    parts: dict[str, set[str]] = {}
    for overlap in overlaps(rules(config), config):
        parts.setdefault(overlap.theirs, set()).add(overlap.ours)
    assert weights.most <= max(map(len, parts.values()))
    assert weights.asked == dict.fromkeys(weights.keys(), 1)


def test_files_are_of_the_size_that_was_asked_for_and_named_by_their_number(tmp_path: Path) -> None:
    config = llama()
    seen: list[tuple[int, int]] = []
    model = random_model(config)
    save_hf(weights_of(model), config, str(tmp_path), max_file_bytes=30_000, on_progress=lambda *at: seen.append(at))
    found = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in found] == [
        f"model-{n + 1:05d}-of-{len(found):05d}.safetensors" for n in range(len(found))
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for path in found:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
        assert keys == {key for key, name in index["weight_map"].items() if name == path.name}
        assert len(keys) == 1 or path.stat().st_size <= 30_000 + 4096  # the header is not counted
    total = index["metadata"]["total_size"]
    assert [seen[0], seen[-1]] == [(0, total), (total, total)]
    assert seen == sorted(set(seen))


def test_every_tensor_keeps_its_type_unless_one_is_asked_for(tmp_path: Path) -> None:
    config = neox()
    went = weights_of(random_model(config)) | {"norm.weight": torch.ones(48, dtype=torch.float16)}
    went["blocks.0.attention.q_proj.bias"] = went["blocks.0.attention.q_proj.bias"].half()
    save_hf(went, config, str(tmp_path))
    kept = HFWeights(str(tmp_path))
    assert kept.get("norm.weight").dtype == kept.dtype("norm.weight") == torch.float16
    name = "blocks.0.attention.q_proj.bias"  # fused with wider ones
    assert kept.dtype(name) == torch.float32 and torch.equal(kept.get(name), went[name].float())
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float32"


def test_numbers_that_float16_does_not_have_are_not_made_infinite(tmp_path: Path) -> None:
    config = llama()
    went = weights_of(random_model(config)) | {"norm.weight": torch.full((48,), 70_000.0)}
    save_hf(went, config, str(tmp_path / "wide"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has numbers beyond 65,504"):
        save_hf(went, config, str(tmp_path / "narrow"), dtype=torch.float16)
    assert not list((tmp_path / "narrow").iterdir())


def test_a_disk_without_room_for_it_is_named_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = llama()
    weights = Counted(config)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000, "total": 10**9}))
    with pytest.raises(OSError, match=r"the model takes [0-9,]+ bytes, and 1,000 are free") as caught:
        save_hf(weights, config, str(tmp_path / "out"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    assert not weights.asked and not (tmp_path / "out").exists()


def test_a_file_that_cannot_grow_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    """As on a disk that fills up on the way: the system refuses a write, and does not say of which file."""
    config = llama()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save_hf(weights_of(random_model(config)), config, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.s3
def test_an_export_into_a_store_is_the_one_into_a_folder(s3: Bucket, tmp_path: Path) -> None:
    config = config_from_hf(ARCHITECTURES["qwen3-moe"])
    went = weights_of(random_model(config))
    for place in (f"{s3.url}/out", str(tmp_path)):
        save_hf(went, config, place, max_file_bytes=20_000, dtype=torch.bfloat16)
    names = listdir(str(tmp_path))
    assert listdir(f"{s3.url}/out") == names and len(names) > 4
    assert all(read(f"{s3.url}/out/{name}") == (tmp_path / name).read_bytes() for name in names)
    with pytest.raises(KeyboardInterrupt):
        save_hf(went, config, f"{s3.url}/out", on_progress=_interrupt)
    assert not listdir(f"{s3.url}/out")


def _interrupt(done: int, total: int) -> None:
    if done > total // 2:
        raise KeyboardInterrupt


def test_weights_are_not_written_over_themselves(tmp_path: Path) -> None:
    """Their folder would have been emptied before the first of them was read."""
    config = llama()
    save_hf(weights_of(random_model(config)), config, str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    before = {name: read(f"{tmp_path}/{name}") for name in listdir(str(tmp_path)) if name != "link"}
    with pytest.raises(ValueError, match="holds the weights that are to be written"):
        save_hf(HFWeights(str(tmp_path)), config, str(tmp_path / "link"))
    assert {name: read(f"{tmp_path}/{name}") for name in before} == before
